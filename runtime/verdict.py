"""Verdict: is a row worth having in the baseline's place? A pure function of a Report."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.results import Measurement, Report
from trainers.stats import Estimate

KEEP, DROP, SAME, INCONCLUSIVE, BASELINE = "KEEP", "DROP", "SAME", "INCONCLUSIVE", "baseline"


@dataclass(frozen=True)
class Verdict:
    """One word, and the sentence that says why."""

    word: str
    why: str


def judge(report: Report, row: Measurement) -> Verdict | None:
    """What becomes of a row; None where nothing was computed, or nothing is there to compare it with.

    KEEP: faster, with the interval clear of 1 and by more than equal rows differ in this run, and accurate enough.
    """
    ratio, base = report.speedup(row), report.baseline(row)
    if not row.valid or ratio is None or base is None:
        return None
    if base is row:
        return Verdict(BASELINE, "what the others are compared with")
    if row.shortfall:
        return Verdict(DROP, f"it ran otherwise than its record says: {row.shortfall}")
    if not report.verified(row):
        return Verdict(DROP, "nobody vouches for its outputs")
    return _accuracy(report, row, ratio) or speed(ratio, report.floor(row))


def _accuracy(report: Report, row: Measurement, ratio: Estimate) -> Verdict | None:
    drop, budget = report.drop(row), report.plan.max_drop
    if drop is None:
        faster = f"{ratio.value:.2f} times as fast, but " if ratio.low > 1 else ""
        return Verdict(INCONCLUSIVE, f"{faster}its accuracy was not measured")
    if drop > budget:
        return Verdict(DROP, f"it loses {drop:.2f} points of top-1, {budget:g} are allowed")
    return None


def speed(ratio: Estimate, floor: float) -> Verdict:
    """What a ratio to the baseline says, where equal rows differ by the share `floor`."""
    interval = f"95% interval {ratio.low:.2f} to {ratio.high:.2f}"
    if ratio.low > 1 and ratio.value > 1 + floor:
        return Verdict(KEEP, f"{ratio.value:.2f} times as fast ({interval})")
    if ratio.high < 1 and ratio.value < 1 / (1 + floor):
        return Verdict(DROP, f"slower: {ratio.value:.2f} times as fast ({interval})")
    if ratio.low > 1 or ratio.high < 1 or (ratio.low > 1 / (1 + floor) and ratio.high < 1 + floor):
        return Verdict(SAME, f"within {floor:.1%}, below which nothing is called different here")
    return Verdict(INCONCLUSIVE, f"the {interval} holds 1; a longer run (--seconds, --rounds) may tell")


def slower_than_float(report: Report, model: str) -> list[str]:
    """A plain sentence for every quantized file that an engine runs more slowly than its own fp32 or fp16."""
    said = []
    rows = [row for row in report.of(model) if report.verified(row) and not row.heat]
    for row in rows:
        variant = report.subject(row).variant
        if variant is None or not variant.precision.startswith(("int8", "fp8")):
            continue
        floats = [other for other in rows if _is_float(report, other) and other.cell.engine == row.cell.engine
                  and other.cell.conditions == row.cell.conditions]  # fmt: skip
        fastest = min(floats, key=lambda other: other.median.value, default=None)
        if fastest is None:
            continue
        times = row.median.value / fastest.median.value
        if row.median.low > fastest.median.high and times > 1 + report.floor(row):
            where = f" at batch {row.cell.batch}" if len(report.plan.batches) > 1 else ""
            said.append(f"{row.cell.artifact} is slower than {fastest.cell.artifact} in {row.cell.engine}{where}: "
                        f"{times:.2f} times its time")  # fmt: skip
    return said


def _is_float(report: Report, row: Measurement) -> bool:
    variant = report.subject(row).variant
    return variant is not None and variant.precision in ("fp32", "fp16", "bf16")

"""A Report as tables in the terminal: what was measured, what was not and why."""

from __future__ import annotations

import math
from collections.abc import Sequence

from runtime import stats
from runtime.results import Measurement, Report
from runtime.verdict import judge
from trainers.cli import console, megabytes, table
from trainers.stats import Estimate

COLUMNS = ("backend", "variant", "batch>", "p50 ms>", "p90 ms>", "times faster>", "95% interval>", "top-1 drop>",
           "size>", "memory>", "build s>", "outputs", "verdict")  # fmt: skip
SWEPT = ("threads>", "regime")  # columns for what varies in this run
SPARE = (
    "build s>",
    "memory>",
    "p90 ms>",
    "outputs",
    "size>",
    "batch>",
    "95% interval>",
    "top-1 drop>",
)  # in this order
UNKNOWN, NOISY = "-", "noisy"


def show(report: Report, *, stderr: bool = False) -> None:
    """Print one table a model, and one of everything that has no number."""
    for model in report.models():
        rows = [row for row in report.of(model) if row.valid]
        if rows:
            lines = [cells(report, model, row) for row in ordered(rows)]
            table(title(report, model), columns(report), lines, stderr=stderr, spare=SPARE)
    shown = console(stderr=stderr)
    for line in (*withheld(report), *failures(report)):
        shown.print(line, markup=False)


def title(report: Report, model: str) -> str:
    """Model, device, threads, what the ratios are to, and what differs by noise alone."""
    count = max(report.plan.threads)
    threads = f"{count} thread{'s' if count > 1 else ''}" if len(report.plan.threads) == 1 else ""
    busy = f"DISTURBED: {', '.join(report.disturbances)}" if report.disturbances else ""
    where = ", ".join(filter(None, (f"{model} on {report.device}", threads)))
    return "; ".join(filter(None, (where, baseline(report, model), noise(report, model), busy)))


def baseline(report: Report, model: str) -> str:
    """What the ratios of a model's rows are to."""
    bases = [base for row in report.of(model) if (base := report.baseline(row))]
    if not bases:
        return "no ratios: neither eager fp32 nor ONNX Runtime fp32 was measured"
    used = dict.fromkeys(base.cell.backend for base in bases)
    names = ("eager fp32" if name == "eager" else "ONNX Runtime fp32 (no eager row)" for name in used)
    return f"times faster than {' or '.join(names)}"


def noise(report: Report, model: str) -> str:
    """What the A/A pairs differ by."""
    twins = [row for row in report.measurements if row.cell.twin and row.valid and report.subject(row).model == model]
    return f"equal rows differ by {max(map(report.floor, twins)):.1%}" if twins else ""


def columns(report: Report) -> list[str]:
    """COLUMNS, and those for what varies in this run."""
    return [*COLUMNS[:3], *(name for name, varies in zip(SWEPT, _varies(report), strict=True) if varies), *COLUMNS[3:]]


def _varies(report: Report) -> tuple[bool, bool]:
    return len(report.plan.threads) > 1, report.plan.regimes != ("device",)


def ordered(rows: Sequence[Measurement]) -> list[Measurement]:
    """By what they are compared under, then by median time; of a baseline in several heats the first."""
    firsts = [row for row in rows if not any(o.cell == row.cell and o.heat < row.heat for o in rows)]
    return sorted(firsts, key=lambda row: (row.cell.conditions, row.median.value))


def cells(report: Report, model: str, row: Measurement) -> list[str]:
    """One row's cells, in the order of `columns`. The model's name is in the title already."""
    subject, ratio, verdict = report.subject(row), report.speedup(row), judge(report, row)
    swept = zip((str(row.cell.threads), row.cell.regime), _varies(report), strict=True)
    return [
        row.cell.engine, subject.name.removeprefix(f"{model}-"), str(row.cell.batch),
        *(text for text, varies in swept if varies),
        milliseconds(row.median.value), milliseconds(row.percentile(0.9)),
        times(ratio),
        f"{ratio.low:.2f} to {ratio.high:.2f}" if ratio else UNKNOWN,
        points(subject.drop), megabytes(subject.bytes),
        megabytes(row.peak_bytes) if row.peak_bytes else UNKNOWN,
        f"{row.build_s:.1f}" if row.build_s else UNKNOWN,
        trust(report, row), verdict.word if verdict else UNKNOWN,
    ]  # fmt: skip


def times(ratio: Estimate | None) -> str:
    """How many times faster, where that is known and its interval does not span more than a factor of two."""
    return UNKNOWN if ratio is None else NOISY if ratio.is_vague else f"{ratio.value:.2f}"


def trust(report: Report, row: Measurement) -> str:
    """What is known about the row's outputs."""
    if row.check is None:
        return "none"
    return "verified" if report.verified(row) else "unverified"


def withheld(report: Report) -> list[str]:
    """Why a percentile is a dash, and what would show it."""
    short = [row.samples for row in report.measurements if row.valid and row.percentile(0.9) is None]
    if not short:
        return []
    return [f"p90 needs {stats.needed(0.9)} samples (p99 {stats.needed(0.99):,}); rows without it have "
            f"{min(short)} to {max(short)}: give --seconds more"]  # fmt: skip


def failures(report: Report) -> list[str]:
    """One line each: rows without a number, engines that cannot run here, artifacts left out."""
    failed = [row for row in report.measurements if not row.valid and not row.cell.twin]
    lines = [f"{row.cell.engine}, {row.cell.artifact}, batch {row.cell.batch}: {row.error}" for row in failed]
    measured = {row.cell.artifact for row in report.measurements}
    lines += [f"{subject.name}: no chosen engine that runs here loads it" for subject in report.subjects
              if subject.name not in measured]  # fmt: skip
    lines += [f"{name}: {reason}" for name, reason in report.unavailable.items()]
    lines += [f"{name}: stale, made from an older checkpoint" for name in report.stale]
    lines += [f"{name}: left out by --quick" for name in report.left_out]
    fell_short = [f"{row.cell.engine}, {row.cell.artifact}: {row.shortfall}" for row in report.measurements
                  if row.valid and row.shortfall and not row.cell.twin]  # fmt: skip
    return [f"not as its record says: {line}" for line in dict.fromkeys(fell_short)] + [
        f"not measured: {line}" for line in dict.fromkeys(lines)
    ]


def milliseconds(seconds: float | None) -> str:
    """Three significant digits, or a dash where there were too few samples."""
    if seconds is None:
        return UNKNOWN
    digits = 2 - math.floor(math.log10(max(1e3 * seconds, 1e-9)))
    return f"{1e3 * seconds:.{max(digits, 1)}f}"


def points(drop: float | None) -> str:
    """An accuracy drop in percentage points; negative is a gain."""
    return UNKNOWN if drop is None else f"{drop + 0.0:.2f}"

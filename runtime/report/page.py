"""A Report as one self-contained HTML file: which row wins, by how much and how surely, and everything behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.inspect import html
from runtime.report import background, plots, summary, table
from runtime.report.background import Section
from runtime.results import Conditions, Measurement, Report
from runtime.verdict import BASELINE, DROP, INCONCLUSIVE, KEEP, SAME, judge

TEMPLATE = Path(__file__).with_name("page.html")
WORDS = (KEEP, DROP, SAME, INCONCLUSIVE, BASELINE)
FIRST = ("variant", "backend")  # of a row's cells
ELSEWHERE = ("batch>", *table.SWEPT, "build s>", "outputs", "verdict")  # of a whole part, or among a row's details
NONE = "none"  # in place of a verdict, where nothing was computed

Row = tuple[str, str, Measurement]  # its anchor, its verdict, and itself


@dataclass(frozen=True)
class Shown:
    """One line of the table: texts, each with the value that it is sorted by, or None where that is the text."""

    anchor: str
    word: str
    cells: list[tuple[str, float | None]]
    details: list[str]


def write(report: Report, path: Path, since: Section | None = None) -> None:
    """Write the page, with what changed `since` another report. Names are shown as they are, and never as markup."""
    parts = [
        _part(report, model, conditions, f"part-{number}-{index}")
        for number, model in enumerate(report.models())
        for index, conditions in enumerate(report.conditions(model))
    ]
    e = report.environment
    found = [("", e.cpu), ("cores", str(e.cores)), ("Python", e.python), *sorted(e.packages.items())]
    html.write(
        path, TEMPLATE.read_text(encoding="utf-8"), title=f"{', '.join(report.models())}: what is fastest here",
        words=WORDS, answers=_answers(report, parts), warnings=summary.warnings(report), machine=_machine(report),
        parts=[part for part in parts if part["rows"]], failures=table.failures(report),
        commands=background.commands(report), environment=found, height=plots.HEIGHT, shown=plots.SHOWN, since=since,
        disturbed=bool(report.disturbances),
    )  # fmt: skip


def _answers(report: Report, parts: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """For each part what is fastest in it: a number to see first, how sure that is, and the sentence."""
    found = []
    for part, sentence in zip(parts, summary.sentences(report), strict=True):
        best: Measurement | None = part["best"]
        base, ratio = (report.baseline(best), report.speedup(best)) if best else (None, None)
        answer = {"name": part["name"], "anchor": part["anchor"] if part["rows"] else "", "sentence": sentence}
        if base and ratio and base is not best and not ratio.is_vague:
            answer["number"] = f"{ratio.value:.2f}× as fast"
            answer["sure"] = f"as {summary.called(base)}, 95% interval {ratio.low:.2f} to {ratio.high:.2f}"
        found.append(answer)
    return found


def _machine(report: Report) -> str:
    e, rounds = report.environment, max((len(row.rounds_s) for row in report.measurements), default=0)
    return (f"{e.time.replace('T', ' ')[:16]} UTC on {e.cpu}, {e.cores} cores, {e.memory_bytes / 1e9:.0f} GB, "
            f"{e.gpu or 'no GPU'}; {rounds} interleaved rounds, {report.plan.processes} process"
            f"{'es' if report.plan.processes > 1 else ''} a row, "
            f"{report.seconds / 60:.1f} min")  # fmt: skip


def _part(report: Report, model: str, conditions: Conditions, anchor: str) -> dict[str, Any]:
    """All about one model under one set of conditions."""
    rows = table.ordered([row for row in report.of(model) if row.valid and row.cell.conditions == conditions])
    named = [(f"{anchor}-{number}", _word(report, row), row) for number, row in enumerate(rows)]
    best = next(iter(report.fastest(model, conditions, report.plan.max_drop)), None)
    sweep = None
    first = conditions == report.conditions(model)[0]
    if first:  # once a model: all batch sizes under its first other conditions
        alike = [row for row in report.of(model) if row.valid and row.check is not None
                 and row.cell.conditions._replace(batch=conditions.batch) == conditions]  # fmt: skip
        sweep = plots.sweep(report, alike)
    return {
        "name": summary.named(report, model, conditions), "anchor": anchor, "note": table.title(report, model),
        "columns": _columns(report), "rows": [_shown(report, one) for one in named],
        "best": best, "pareto": plots.pareto(report, named, best),
        "distributions": plots.distributions(report, named) if named else None,
        "sweep": sweep, "sections": background.sections(report, model) if first else [],
    }  # fmt: skip


def _word(report: Report, row: Measurement) -> str:
    verdict = judge(report, row)
    return verdict.word if verdict else NONE


def _columns(report: Report) -> list[str]:
    return [*FIRST, *(name for name in table.columns(report) if name not in (*FIRST, *ELSEWHERE))]


def _shown(report: Report, named: Row) -> Shown:
    anchor, word, row = named
    subject, ratio = report.subject(row), report.speedup(row)
    texts = dict(zip(table.columns(report), table.cells(report, subject.model, row), strict=True))
    values: dict[str, float | None] = {
        "p50 ms>": row.median.value, "p90 ms>": row.percentile(0.9), "times faster>": ratio.value if ratio else None,
        "95% interval>": ratio.low if ratio else None, "top-1 drop>": subject.drop, "size>": subject.bytes,
        "memory>": row.peak_bytes,
    }  # fmt: skip
    cells: list[tuple[str, float | None]] = [
        (texts[name], (-1.0 if (value := values[name]) is None else float(value)) if ">" in name else None)
        for name in _columns(report)
    ]
    return Shown(anchor, word, cells, _details(report, row))


def _details(report: Report, row: Measurement) -> list[str]:
    """What there is to know about a row besides its numbers."""
    subject, verdict, check = report.subject(row), judge(report, row), row.check
    lines = [verdict.why if verdict else "nothing was computed"]
    if row.shortfall:
        lines.append(f"ran otherwise than recorded: {row.shortfall}")
    if check is not None and check.cosine is not None:
        lines.append(
            f"outputs {table.trust(report, row)}: cosine {check.cosine:.5f}, largest error {check.max_abs_err:.3g}, "
            f"top-1 agreement {check.top1_agreement:.1f}% on {check.images} images"
        )
    if subject.drop_interval is not None:
        low, high = subject.drop_interval
        lines.append(f"top-1 drop {subject.drop:+.2f} points, 95% interval {low:+.2f} to {high:+.2f}")
    times = [f"{name} {value:.2f} s" for name, value in (("build", row.build_s), ("load", row.load_s),
             ("first inference", row.first_s)) if value is not None]  # fmt: skip
    lines.append(f"{'; '.join(times)}; {row.samples:,} samples in {len(row.rounds_s)} rounds")
    if row.attested:
        lines.append(", ".join(f"{name}: {value}" for name, value in row.attested.items()))
    return [*lines, f"{subject.path}, sha256 {subject.sha256[:16]}…"]

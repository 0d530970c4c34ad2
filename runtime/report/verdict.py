"""A Report in one sentence a model and batch size."""

from __future__ import annotations

import shlex
from pathlib import Path

from runtime import stats
from runtime.report.table import milliseconds
from runtime.results import Measurement, Report
from trainers.cli import console

MAX_DROP = 1.0  # percentage points of top-1


def sentences(report: Report) -> list[str]:
    """For each model and batch size: the fastest verified variant that keeps its accuracy."""
    found = []
    for model in report.models():
        for batch in dict.fromkeys(row.cell.batch for row in report.of(model)):
            rows = report.fastest(model, batch, MAX_DROP)
            found.append(_sentence(report, model, batch, rows))
    return found


def show(report: Report, path: Path, *, stderr: bool = False) -> None:
    """Print the sentences, where the report is, and how to look at the file that came first."""
    shown = console(stderr=stderr)
    if report.is_disturbed:
        shown.print(f"warning: other programs used {report.other_load:.1f} cores meanwhile, which slows some engines "
                    "more than others: measure again on a quiet machine", markup=False)  # fmt: skip
    for sentence in sentences(report):
        shown.print(sentence, markup=False)
    shown.print(f"report: {path}", markup=False)
    row = best(report)
    if row is not None:
        shown.print(f"graph: netron {shlex.quote(report.subject(row).path)}", markup=False)


def best(report: Report) -> Measurement | None:
    """The row that the first sentence names."""
    for model in report.models():
        for batch in dict.fromkeys(row.cell.batch for row in report.of(model)):
            if rows := report.fastest(model, batch, MAX_DROP):
                return rows[0]
    return None


def _sentence(report: Report, model: str, batch: int, rows: list[Measurement]) -> str:
    where = f"{model}, batch {batch}"
    if not rows:
        return f"{where}: no verified variant within {MAX_DROP:g} point of accuracy was measured."
    row = rows[0]
    text = (
        f"{where}: fastest verified variant within {MAX_DROP:g} point of accuracy is {row.cell.artifact} in "
        f"{row.cell.engine}, {milliseconds(row.median.value)} ms{_ratio(report, row)}"
    )
    return f"{text}{_tie(row, rows[1:])}{' (provisional: the machine was busy)' if report.is_disturbed else ''}."


def _ratio(report: Report, row: Measurement) -> str:
    base, ratio = report.baseline(report.subject(row).model, row.cell.batch), report.speedup(row)
    if base is None or ratio is None or base is row:
        return ""
    name = "eager fp32" if base.cell.backend == "eager" else "ONNX Runtime fp32"
    if ratio.is_vague:
        return f", but too noisy to say how much faster than {name} (95% interval {ratio.low:.2f} to {ratio.high:.2f})"
    return f", {ratio.value:.2f} times as fast as {name} (95% interval {ratio.low:.2f} to {ratio.high:.2f})"


def _tie(row: Measurement, others: list[Measurement]) -> str:
    """The runner-up, when the rounds do not tell the two apart."""
    if not others:
        return ""
    ratio = stats.speedup(others[0].rounds_s, row.rounds_s)
    if ratio.low > 1:
        return ""
    return f"; {others[0].cell.artifact} in {others[0].cell.engine} is not measurably slower"

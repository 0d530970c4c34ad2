"""A Report in one sentence a model and condition, and what a reader should know before quoting it."""

from __future__ import annotations

import shlex
from pathlib import Path

from runtime import machine, stats
from runtime.report.table import milliseconds
from runtime.results import Conditions, Measurement, Report
from runtime.verdict import slower_than_float
from trainers.cli import console
from trainers.stats import Estimate

PROVISIONAL = " (provisional: the machine was busy)"


def sentences(report: Report) -> list[str]:
    """For each model and condition: the fastest verified variant that keeps its accuracy."""
    return [_sentence(report, model, one) for model in report.models() for one in report.conditions(model)]


def warnings(report: Report) -> list[str]:
    """What may have bent the times, and what the times themselves show to be unwise."""
    found = []
    if report.disturbances:
        found.append(f"warning: {'; '.join(report.disturbances)}: this slows some engines more than others; measure "
                     "again on a quiet machine")  # fmt: skip
        if any(row.cell.backend == "native" and not row.cell.options for row in report.measurements):
            found.append("native's threads wait for each other, and so for what else runs: --option cores=1 uses one")
    unsteady = [f"{row.cell.artifact} in {row.cell.engine}" for row in report.measurements if row.steady is False]
    if unsteady:
        found.append(f"still getting faster when the warm-up ended: {', '.join(dict.fromkeys(unsteady))}")
    found += machine.notes(report.states)
    return found + [line for model in report.models() for line in slower_than_float(report, model)]


def show(report: Report, path: Path, *, stderr: bool = False) -> None:
    """Print the sentences, where the report is, and how to look at the file that came first."""
    shown = console(stderr=stderr)
    for sentence in (*warnings(report), *sentences(report)):
        shown.print(sentence, markup=False)
    shown.print(f"report: {path}", markup=False)
    row = best(report)
    if row is not None:
        shown.print(f"graph: netron {shlex.quote(report.subject(row).path)}", markup=False)


def best(report: Report) -> Measurement | None:
    """The row that the first sentence names."""
    for model in report.models():
        for conditions in report.conditions(model):
            if rows := report.fastest(model, conditions, report.plan.max_drop):
                return rows[0]
    return None


def named(report: Report, model: str, conditions: Conditions) -> str:
    """The model, and of the conditions what varies in this run."""
    parts = [f"batch {conditions.batch}"]
    parts += [f"{conditions.threads} threads"] if len(report.plan.threads) > 1 else []
    parts += [conditions.regime] if report.plan.regimes != ("device",) else []
    return ", ".join([model, *parts])


def _sentence(report: Report, model: str, conditions: Conditions) -> str:
    budget = f"{report.plan.max_drop:g} point{'s' if report.plan.max_drop != 1 else ''}"
    rows = report.fastest(model, conditions, report.plan.max_drop)
    where = named(report, model, conditions)
    if not rows:
        return f"{where}: no verified variant within {budget} of accuracy was measured."
    row = rows[0]
    text = (
        f"{where}: fastest verified variant within {budget} of accuracy is {row.cell.artifact} in "
        f"{row.cell.engine}, {milliseconds(row.median.value)} ms{_ratio(report, row)}"
    )
    busy = PROVISIONAL if report.disturbances else ""
    return f"{text}{_doubt(report, row, budget)}{_tie(report, row, rows[1:])}{busy}."


def _doubt(report: Report, row: Measurement, budget: str) -> str:
    """That too few images were asked to show what is claimed of its accuracy."""
    interval = report.subject(row).drop_interval
    if interval is None or interval[1] <= report.plan.max_drop or report.subject(row).is_exact_fp32:
        return ""
    return f"; its drop may be up to {interval[1]:.2f} points: only more images would show that it is within {budget}"


def _ratio(report: Report, row: Measurement) -> str:
    base, ratio = report.baseline(row), report.speedup(row)
    if base is None or ratio is None or base is row:
        return ""
    name = called(base)
    if ratio.is_vague:
        return too_noisy(ratio, name)
    return f", {ratio.value:.2f} times as fast as {name} (95% interval {ratio.low:.2f} to {ratio.high:.2f})"


def too_noisy(ratio: Estimate, base: str) -> str:
    """What is said of a ratio whose value alone would mislead."""
    return f", but too noisy to say how much faster than {base} (95% interval {ratio.low:.2f} to {ratio.high:.2f})"


def called(base: Measurement) -> str:
    """What a baseline is called."""
    return "eager fp32" if base.cell.backend == "eager" else "ONNX Runtime fp32"


def _tie(report: Report, row: Measurement, others: list[Measurement]) -> str:
    """The runner-up, when the rounds do not tell the two apart."""
    rivals = [other for other in others if other.heat == row.heat]
    if not rivals:
        return ""
    ratio = stats.speedup(rivals[0].rounds_s, row.rounds_s, row.processes)
    if ratio.low > 1 and ratio.value > 1 + report.floor(row):
        return ""
    return f"; {rivals[0].cell.artifact} in {rivals[0].cell.engine} is not measurably slower"

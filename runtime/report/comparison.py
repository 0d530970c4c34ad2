"""A Comparison as tables in the terminal, and as Markdown for a pull request."""

from __future__ import annotations

from collections import Counter

from runtime.change import Change
from runtime.compare import Comparison
from runtime.report.table import UNKNOWN, milliseconds
from runtime.results import Cell
from trainers import cli
from trainers.cli import console, table

COLUMNS = ("verdict", "backend", "variant", "conditions", "old p50 ms>", "new p50 ms>", "new / old>", "95% interval>",
           "drop, points>", "size>", "why")  # fmt: skip


def show(comparison: Comparison) -> None:
    """Print what differs between the runs, a table a model, and the sum."""
    shown = console()
    for line in comparison.warnings:
        shown.print(line, markup=False)
    for model in comparison.models():
        table(model, COLUMNS, [cells(change) for change in comparison.changes if change.model == model])
    shown.print(summary(comparison), markup=False)


def markdown(comparison: Comparison) -> str:
    """The same as one Markdown text, the sum first."""
    lines = [f"**{summary(comparison)}**", "", *(f"- {line}" for line in comparison.warnings)]
    for model in comparison.models():
        rows = [cells(change) for change in comparison.changes if change.model == model]
        lines += ["", f"### {model}", "", cli.markdown(COLUMNS, rows)]
    return "\n".join(lines) + "\n"


def cells(change: Change) -> list[str]:
    """One row's cells, in the order of COLUMNS."""
    ratio = change.ratio
    return [
        change.word, change.cell.engine, change.cell.artifact.removeprefix(f"{change.model}-"), conditions(change.cell),
        milliseconds(change.old_s), milliseconds(change.new_s),
        f"{ratio.value:.3f}" if ratio else UNKNOWN, f"{ratio.low:.3f} to {ratio.high:.3f}" if ratio else UNKNOWN,
        UNKNOWN if change.drop is None else f"{change.drop:+.2f}",
        UNKNOWN if change.size is None else f"{100 * (change.size - 1):+.1f}%",
        "; ".join(change.why) or UNKNOWN,
    ]  # fmt: skip


def conditions(cell: Cell) -> str:
    """Batch, threads and regime: what tells rows of a sweep apart."""
    return f"batch {cell.batch}, {cell.threads} thread{'s' if cell.threads > 1 else ''}, {cell.regime}"


def summary(comparison: Comparison) -> str:
    """How many rows of each word there are, and what was allowed."""
    counts = Counter(change.word for change in comparison.changes)
    limits = comparison.limits
    return (f"{', '.join(f'{count} {word}' for word, count in counts.most_common())} "
            f"(allowed: {100 * limits.over:g}% of time and size, {limits.drop:g} points)")  # fmt: skip

"""A Report as Markdown, for a pull request or a README: what the terminal shows, in the same words."""

from __future__ import annotations

from runtime.report import summary, table
from runtime.results import Report
from trainers import cli


def render(report: Report) -> str:
    """The sentences first, then a table a model, then what has no number."""
    lines = [f"**{sentence}**\n" for sentence in summary.sentences(report)]
    lines += [f"- {line}" for line in summary.warnings(report)]
    for model in report.models():
        rows = [row for row in report.of(model) if row.valid]
        if rows:
            cells = [table.cells(report, model, row) for row in table.ordered(rows)]
            lines += ["", table.title(report, model), "", cli.markdown(table.columns(report), cells)]
    lines += ["", *(f"- {line}" for line in (*table.withheld(report), *table.failures(report)))]
    return "\n".join(lines).rstrip() + "\n"

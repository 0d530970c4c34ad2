"""python -m runtime report: print a report again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.cli import OK, add_common, emit
from trainers.manifest import UserError

if TYPE_CHECKING:
    from runtime.compare import Comparison
    from runtime.results import Report

SUMMARY = "show a report again: in the terminal, as a page, as Markdown or as CSV"
EXAMPLES = """\
examples:
  python -m runtime report
  python -m runtime report --html report.html      one file, to look at and to hand on
  python -m runtime report before.json after.json --html changes.html
  python -m runtime report --md > report.md
  python -m runtime report --logs logs             for tensorboard --logdir logs
  python -m runtime report --csv > latest.csv
"""


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="*", type=Path, metavar="REPORT",
                        help="one, or an old and a new one: what changed (default: the latest under DIR)")  # fmt: skip
    parser.add_argument("--across-machines", action="store_true", help="compare though two machines gave the reports")
    parser.add_argument("--csv", action="store_true", help="print comma-separated values instead of the table")
    parser.add_argument("--md", action="store_true", help="print Markdown instead of the table")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page that needs nothing else")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="write the rows as TensorBoard runs under DIR")
    add_common(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print a report again, and what changed since an older one where two are given."""
    from runtime.report import background, comparison, csv, markdown, page, summary, table
    from runtime.results import Report
    from runtime.saved import latest, named

    if arguments.csv + arguments.md + arguments.json > 1:
        raise UserError("--csv, --md and --json are forms of the same; give one")
    if len(arguments.paths) > 2:
        raise UserError(f"{len(arguments.paths)} reports; give one, or an old and a new one")
    if len(arguments.paths) == 2 and (arguments.csv or arguments.json):
        raise UserError("--csv and --json are of one report; what changed: python -m runtime compare OLD NEW --json")
    path = named(arguments.paths[-1]) if arguments.paths else latest(arguments.artifacts)
    found = Report.load(path)
    since = _since(arguments, found) if len(arguments.paths) == 2 else None
    if arguments.html is not None:
        page.write(found, arguments.html, background.changes(since, str(arguments.paths[0])) if since else None)
        print(f"page: {arguments.html}", file=sys.stderr)
    if arguments.logs is not None:
        from runtime.report import board

        board.write(found, arguments.logs)
        print(f"rows: tensorboard --logdir {arguments.logs}", file=sys.stderr)
    if arguments.json:
        emit(found.to_document())
    elif arguments.csv:
        print(csv.render(found), end="")
    elif arguments.md:
        print("\n".join([markdown.render(found), *([comparison.markdown(since)] if since else [])]), end="")
    elif arguments.html is None and arguments.logs is None:
        table.show(found)
        summary.show(found, path)
    return OK


def _since(arguments: argparse.Namespace, new: Report) -> Comparison:
    """What changed since the first report named. Printed, unless Markdown will be."""
    from runtime.change import Limits
    from runtime.compare import compare
    from runtime.report import comparison
    from runtime.results import Report
    from runtime.saved import named

    old = Report.load(named(arguments.paths[0]))
    made = compare(old, new, Limits(), across_machines=arguments.across_machines)
    if not arguments.md:
        comparison.show(made)
    return made

"""python -m runtime report: print a report again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from trainers.cli import OK, add_common, emit
from trainers.manifest import UserError

SUMMARY = "show a report again: in the terminal, as a page, as Markdown or as CSV"
EXAMPLES = """\
examples:
  python -m runtime report
  python -m runtime report --html report.html      one file, to look at and to hand on
  python -m runtime report --md > report.md
  python -m runtime report --csv > latest.csv
"""


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", nargs="?", type=Path, metavar="REPORT", help="a report (default: the latest under DIR)")
    parser.add_argument("--csv", action="store_true", help="print comma-separated values instead of the table")
    parser.add_argument("--md", action="store_true", help="print Markdown instead of the table")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page that needs nothing else")
    add_common(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print a report again."""
    from runtime.report import csv, markdown, page, summary, table
    from runtime.results import Report
    from runtime.saved import latest

    if arguments.csv + arguments.md + arguments.json > 1:
        raise UserError("--csv, --md and --json are forms of the same; give one")
    path = arguments.path or latest(arguments.artifacts)
    found = Report.load(path)
    if arguments.html is not None:
        page.write(found, arguments.html)
        print(f"page: {arguments.html}", file=sys.stderr)
    if arguments.json:
        emit(found.to_document())
    elif arguments.csv:
        print(csv.render(found), end="")
    elif arguments.md:
        print(markdown.render(found), end="")
    elif arguments.html is None:
        table.show(found)
        summary.show(found, path)
    return OK

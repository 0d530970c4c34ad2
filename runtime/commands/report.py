"""python -m runtime report: print a report again."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainers.cli import OK, add_common, emit
from trainers.manifest import UserError

SUMMARY = "print a report's tables again"
EXAMPLES = """\
examples:
  python -m runtime report
  python -m runtime report --csv > latest.csv
"""


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", nargs="?", type=Path, metavar="REPORT", help="a report (default: the latest under DIR)")
    parser.add_argument("--csv", action="store_true", help="print comma-separated values instead of the table")
    add_common(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print a report again."""
    from runtime.report import csv, summary, table
    from runtime.results import Report
    from runtime.saved import latest

    if arguments.csv and arguments.json:
        raise UserError("--csv and --json are two forms of the same; give one")
    path = arguments.path or latest(arguments.artifacts)
    found = Report.load(path)
    if arguments.json:
        emit(found.to_document())
    elif arguments.csv:
        print(csv.render(found), end="")
    else:
        table.show(found)
        summary.show(found, path)
    return OK

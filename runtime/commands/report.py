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


def latest(artifacts: Path) -> Path:
    """The newest report; their names begin with the time."""
    reports = (artifacts / "reports").glob("[0-9]*.json")  # a run that was interrupted is none yet
    paths = sorted(reports, key=lambda path: (path.stat().st_mtime_ns, path.name))
    if not paths:
        raise UserError(f"no report in {artifacts / 'reports'}; make one with: python -m runtime bench MODEL")
    return paths[-1]

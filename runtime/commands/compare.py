"""python -m runtime compare: what became slower, less accurate or larger between two reports."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from trainers.cli import FAILED, OK, emit
from trainers.manifest import UserError

SUMMARY = "compare two reports; exit status 1 when something has become worse"
EXAMPLES = """\
examples:
  python -m runtime compare before.json after.json
  python -m runtime compare main/artifacts artifacts --fail-over 5% --markdown > comment.md
"""


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", type=Path, metavar="OLD", help="a report, or a folder, for its newest report")
    parser.add_argument("new", type=Path, metavar="NEW", help="another")
    parser.add_argument("--fail-over", type=share, default=0.03, metavar="PERCENT",
                        help="how much longer a row may take, or larger its file may be (default: 3%%)")  # fmt: skip
    parser.add_argument("--fail-drop", type=points, default=0.5, metavar="POINTS",
                        help="how many points of top-1 a file may lose (default: 0.5)")  # fmt: skip
    parser.add_argument("--across-machines", action="store_true", help="compare though two machines gave the reports")
    parser.add_argument("--markdown", action="store_true", help="print Markdown, for a pull request")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def share(text: str) -> float:
    """argparse type: a percentage, with its sign, as a share of one."""
    if not text.endswith("%"):
        raise argparse.ArgumentTypeError(f"{text} has no %; write for example 3%")
    return points(text[:-1]) / 100


def points(text: str) -> float:
    """argparse type: a number of at least 0."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return value


share.__name__, points.__name__ = "percentage", "number of points"  # argparse names the type in its message


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison. Exit 1 when there is a regression."""
    import msgspec

    from runtime import saved
    from runtime.change import Limits
    from runtime.compare import compare
    from runtime.report import comparison
    from runtime.results import Report

    if arguments.markdown and arguments.json:
        raise UserError("--markdown and --json are two forms of the same; give one")
    paths = [saved.named(path) for path in (arguments.old, arguments.new)]
    old, new = (Report.load(path) for path in paths)
    limits = Limits(over=arguments.fail_over, drop=arguments.fail_drop)
    found = compare(old, new, limits, across_machines=arguments.across_machines)
    if arguments.json:
        emit({"schema": 1, "old": str(paths[0]), "new": str(paths[1]), **msgspec.to_builtins(found)})
    elif arguments.markdown:
        print(comparison.markdown(found), end="")
    else:
        comparison.show(found)
    return FAILED if found.regressions else OK

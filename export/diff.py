"""python -m export.diff A B: what changed between two ONNX graphs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from trainers import cli

if TYPE_CHECKING:
    from export.inspect.graphdiff import Diff, Row, Side

TOP = 40
EXAMPLES = """\
examples:
  python -m export.diff convnext-dynamo-exact-fp32 convnext-dynamo-exact-int8
  python -m export.diff resnet18-dynamo-exact-fp32 resnet18-eager-exact-fp32 --html exporters.html
  python -m export.diff old.onnx new.onnx --check        exit status 1 when they differ

Operations correspond by name and weights, else by operator, attributes and shapes in topological order. Weights are
compared as the operation sees them: a quantized one through its DequantizeLinear. Names, metadata and attributes
written out at their default are no difference. An artifact's hash is not checked here: python -m export.check does.
"""


def parser() -> cli.Parser:
    made = cli.Parser(
        prog="python -m export.diff",
        description="Compare two ONNX graphs: operations, attributes, weights, precision, inputs and outputs.",
        epilog=EXAMPLES,
    )
    made.add_argument(
        "before", metavar="A", help="an ONNX file, an artifact's name, or a model's (its plain fp32 file)"
    )
    made.add_argument("after", metavar="B", help="the same")
    made.add_argument("--html", type=Path, metavar="FILE", help="write an overlay of the two graphs")
    made.add_argument("--top", type=cli.positive, default=TOP, metavar="N", help=f"operations shown (default: {TOP})")
    made.add_argument("--check", action="store_true", help="exit with status 1 when the graphs differ")
    cli.add_common(made)
    return made


def main() -> int:
    arguments = parser().parse_args()
    from export.inspect.graphdiff import compare
    from export.inspect.locate import locate

    diff = compare(*(locate(name, arguments.artifacts) for name in (arguments.before, arguments.after)))
    if arguments.html:
        from export.inspect.overlay import write_overlay

        write_overlay(diff, arguments.html)
    if arguments.json:
        cli.emit({"schema": 1, **diff.to_document(), "page": str(arguments.html) if arguments.html else None})
    else:
        _show(diff, arguments.top)
    last = "the graphs differ" if diff.differs else "OK: the graphs are the same"
    page = f"; overlay: {arguments.html}" if arguments.html else ""
    failed = arguments.check and diff.differs
    print(f"{'FAILED: ' if failed else ''}{last}{page}", file=sys.stderr if arguments.json else sys.stdout)
    return cli.FAILED if failed else cli.OK


def _show(diff: Diff, top: int) -> None:
    """Both files, what changed in sum, and the first operations that did."""
    from rich.markup import escape

    sides = [(name, str(side.path), cli.megabytes(side.bytes), str(side.nodes), *_signature(side))
             for name, side in (("A", diff.before), ("B", diff.after))]  # fmt: skip
    cli.table("A → B", ("", "file", ">size", ">nodes", "opset", "inputs", "outputs"), sides)
    cli.table("in sum", ("subject", "A → B"), diff.summary())
    changed = [row for row in diff.rows if row.status != "same"]
    if changed:
        counts = [f"{count} {operator} {status}" for (status, operator), count in diff.counts().most_common()
                  if status != "same"]  # fmt: skip
        cli.table(
            escape(", ".join(counts)), ("status", "operator", "A", "B", "what"), [_cells(row) for row in changed[:top]]
        )
    if len(changed) > top:
        print(f"and {len(changed) - top} more; all with --top {len(changed)}, --html FILE or --json")


def _signature(side: Side) -> tuple[str, str, str]:
    opsets = ", ".join(f"{domain} {version}" for domain, version in side.opset.items())
    return opsets, ", ".join(side.inputs), ", ".join(side.outputs)


def _cells(row: Row) -> tuple[str, ...]:
    names = (node.name if node else "" for node in (row.before, row.after))
    return (row.status, row.operator, *names, "; ".join(row.changes))


if __name__ == "__main__":
    cli.run(main)

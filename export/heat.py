"""python -m export.heat FILE: the graph as a picture that shows where time goes and what quantization spoils."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainers import cli

EXAMPLES = """\
examples:
  python -m export.heat convnext-dynamo-exact-int8
  python -m runtime profile convnext-dynamo-exact-int8 --backend onnxruntime
  python -m export.heat convnext-dynamo-exact-int8          now also by time

Every layer is coloured by one of: time as profiled, quantization error, FLOPs, bytes. The error is the relative
difference of the layer's result from that of the fp32 file that it was made from, on reference images.
"""


def parser() -> cli.Parser:
    made = cli.Parser(
        prog="python -m export.heat", epilog=EXAMPLES,
        description="Draw a graph coloured by time, quantization error, FLOPs and bytes, as one HTML page.",
    )  # fmt: skip
    made.add_argument("file", metavar="FILE|MODEL", help="an ONNX file, an artifact's name, or a model's")
    made.add_argument("--costs", type=Path, metavar="FILE", help="a profile of this file (default: its newest)")
    made.add_argument("--html", type=Path, metavar="FILE", help="the page (default: in the model's folder, heat/)")
    cli.add_common(made)
    return made


def main() -> int:
    arguments = parser().parse_args()
    from export.artifact import open_file
    from export.costs import load_costs
    from export.inspect.heat import heat_of, rendered
    from export.inspect.locate import is_recorded, locate
    from trainers.allocator import keep_freed_memory
    from trainers.manifest import write_atomic

    keep_freed_memory()
    found = open_file(locate(arguments.file, arguments.artifacts))
    heat = heat_of(found, load_costs(arguments.costs, found.path) if arguments.costs else None)
    folder = found.path.parent / "heat" if is_recorded(found.path) else found.path.parent
    page = arguments.html or folder / f"{found.name}-heat.html"
    write_atomic(page, rendered(heat).encode())
    if arguments.json:
        cli.emit({"schema": 1, "page": str(page), **heat.to_document()})
    else:
        _show(arguments, heat.rows)
        print(f"page: {page}")
    return cli.OK


def _show(arguments: argparse.Namespace, rows: list[tuple[str, ...]]) -> None:
    from export.inspect.heat import COLUMNS

    cli.table(f"{arguments.file}: the layers that stand out most", COLUMNS, rows[:20])


if __name__ == "__main__":
    cli.run(main)

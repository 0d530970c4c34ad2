"""python -m export.heat FILE: the graph as a picture that shows where time goes and what quantization spoils."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from trainers import cli

if TYPE_CHECKING:
    from export.artifact import Artifact, Found

IMAGES = 8  # of the reference's, that errors are measured on
EXAMPLES = """\
examples:
  python -m export.heat convnext-dynamo-exact-int8
  python -m runtime profile convnext-dynamo-exact-int8 --backend onnxruntime
  python -m export.heat convnext-dynamo-exact-int8 --costs \\
      artifacts/convnext/profile/convnext-dynamo-exact-int8-onnxruntime-t2.json

Every layer is coloured by one of: measured time (with --costs), quantization error, FLOPs, bytes. The error is the
relative difference of the layer's result from that of the fp32 file that it was made from, on reference images.
"""


def parser() -> cli.Parser:
    made = cli.Parser(
        prog="python -m export.heat", epilog=EXAMPLES,
        description="Draw a graph coloured by time, quantization error, FLOPs and bytes, as one HTML page.",
    )  # fmt: skip
    made.add_argument("file", metavar="FILE|MODEL", help="an ONNX file, an artifact's name, or a model's")
    made.add_argument("--costs", type=Path, metavar="FILE", help="a profile of this file: adds measured milliseconds")
    made.add_argument("--html", type=Path, metavar="FILE", help="the page (default: in the model's folder, heat/)")
    cli.add_common(made)
    return made


def main() -> int:
    arguments = parser().parse_args()
    from export.artifact import open_file
    from export.costs import load_costs
    from export.inspect.drawing import draw
    from export.inspect.heat import Heat, write_heat
    from export.inspect.locate import is_recorded, locate
    from trainers.allocator import keep_freed_memory

    keep_freed_memory()
    found = open_file(locate(arguments.file, arguments.artifacts))
    costs = load_costs(arguments.costs, found.path) if arguments.costs else None
    heat = Heat(found.path, draw(found.path, costs.batch if costs else None), _errors(found), costs)
    folder = found.path.parent / "heat" if is_recorded(found.path) else found.path.parent
    page = arguments.html or folder / f"{found.name}-heat.html"
    write_heat(heat, page)
    if arguments.json:
        cli.emit({"schema": 1, "page": str(page), **heat.to_document()})
    else:
        _show(arguments, heat.rows)
        print(f"page: {page}")
    return cli.OK


def _errors(found: Found) -> dict[str, float]:
    """Of each activation against the file that was quantized; empty where there is none to compare with."""
    record = found.record
    parent = _parent(found.path.parent, record) if record else None
    if record is None or parent is None or record.variant.input_dtype != "float32":
        return {}
    import numpy as np
    from safetensors.numpy import load_file

    from export.inspect.errors import measure

    images = load_file(record.reference.verify(found.path.parent))["images"][:IMAGES]
    size = record.variant.batch or 1
    batches = [np.resize(images[start : start + size], (size, *images.shape[1:]))
               for start in range(0, len(images), size)]  # fmt: skip
    return measure(parent, found.path, cli.track(batches, "quantization error"), record.variant.precision)


def _parent(folder: Path, record: Artifact) -> Path | None:
    """The fp32 file that it was made from, if that is still there."""
    from trainers.manifest import sha256

    for edge in reversed(record.parents):
        path = folder / edge.path
        if edge.role in ("fp32", "rewritten") and path.is_file() and sha256(path) == edge.sha256:
            return path
    return None


def _show(arguments: argparse.Namespace, rows: list[tuple[str, ...]]) -> None:
    from export.inspect.heat import COLUMNS

    cli.table(f"{arguments.file}: the layers that stand out most", COLUMNS, rows[:20])


if __name__ == "__main__":
    cli.run(main)

"""python -m export.ops FILE|MODEL: what an ONNX file is made of, by operator and by layer."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from trainers import cli
from trainers.manifest import UserError

if TYPE_CHECKING:
    from export.costs import Costs
    from export.inspect.inventory import Inventory, Row

TOP = 20
EXAMPLES = """\
examples:
  python -m export.ops convnext                          its plain fp32 ONNX file
  python -m export.ops resnet18-dynamo-exact-int8 --by layer
  python -m export.ops model.onnx --batch 8 --output charts
  python -m export.ops model.onnx --costs profile.json   with each layer's measured time

FLOPs: a multiply-add counts 2, taps over padding count. Bytes: the weights and activations that each layer reads and
writes, in their types. A Q/DQ pair counts as a quantized tensor between its neighbours. An operator that is not known
has FLOPs "-". The chart goes to artifacts/MODEL/ops/ for recorded files, beside the file for others.
"""


def parser() -> cli.Parser:
    made = cli.Parser(
        prog="python -m export.ops",
        description="Chart an ONNX file: FLOPs, bytes and parameters by operator and by layer.",
        epilog=EXAMPLES,
    )
    made.add_argument("file", metavar="FILE|MODEL", help="an ONNX file, an artifact's name, or a model's")
    made.add_argument("--batch", type=cli.positive, metavar="N", help="default: 1, or what the file or profile has")
    made.add_argument("--by", choices=("operator", "layer"), default="operator", help="the table's rows")
    made.add_argument("--top", type=cli.positive, default=TOP, metavar="N", help=f"rows shown (default: {TOP})")
    made.add_argument("--costs", type=Path, metavar="FILE", help="a profile of this file: adds measured milliseconds")
    made.add_argument("--output", type=Path, metavar="DIR", help="where the PNG and HTML go")
    cli.add_common(made)
    return made


def main() -> int:
    arguments = parser().parse_args()
    from export.artifact import open_file
    from export.inspect.inventory import take
    from export.inspect.locate import locate

    path = open_file(locate(arguments.file, arguments.artifacts)).path
    costs = _costs(arguments, path)
    inventory = take(path, arguments.batch or (costs.batch if costs else None), costs)
    picture, page = _write(inventory, arguments)
    if arguments.json:
        files = {"picture": str(picture), "page": str(page)}
        cli.emit({"schema": 1, **inventory.to_document(), "files": files})
    else:
        _show(inventory, arguments)
    print(f"chart: {picture}, {page.name}", file=sys.stderr if arguments.json else sys.stdout)
    return cli.OK


def _costs(arguments: argparse.Namespace, path: Path) -> Costs | None:
    """The profile named. Raises UserError when it is of another file or batch size."""
    if arguments.costs is None:
        return None
    from export.costs import load_costs

    costs = load_costs(arguments.costs, path)
    if arguments.batch not in (None, costs.batch):
        raise UserError(f"{arguments.costs} was taken at batch {costs.batch}; leave --batch out, or profile at it")
    return costs


def _write(inventory: Inventory, arguments: argparse.Namespace) -> tuple[Path, Path]:
    """The PNG and the HTML page."""
    from export.inspect.charts import draw
    from export.inspect.html import write_ops
    from export.inspect.locate import is_recorded

    path = inventory.path
    recorded = is_recorded(path)
    folder = arguments.output or (path.parent / "ops" if recorded else path.parent)
    batch = f"-b{inventory.batch}" if inventory.batch != 1 else ""
    stem = f"{path.stem}{batch}" if recorded else f"{path.stem}{batch}-ops"  # beside a file others may be called so
    picture, page = folder / f"{stem}.png", folder / f"{stem}.html"
    draw(inventory, picture)
    write_ops(inventory, picture, page)
    return picture, page


def _show(inventory: Inventory, arguments: argparse.Namespace) -> None:
    from rich.markup import escape

    from export.inspect.charts import heading, measures, summed

    operators = arguments.by == "operator"
    rows = summed(inventory.by_operator if operators else inventory.by_layer, arguments.top, f"{arguments.by}s")
    columns = ("operator", "precision", ">nodes") if operators else ("layer", "operator", "precision", "weight")
    heads = [head for measure in measures(inventory) for head in (f">{measure.title}", ">share")]
    cells = [[*_named(row, operators), *_numbers(row, inventory)] for row in rows]
    cli.table(escape(heading(inventory)), (*columns, *heads, ">FLOPs a byte"), cells)
    for note in inventory.notes():
        cli.console().print(f"{note}.", markup=False)


def _named(row: Row, operators: bool) -> list[str]:
    return (
        [row.label, row.precision, str(row.nodes)]
        if operators
        else [row.label, row.operator, row.precision, row.weight]
    )


def _numbers(row: Row, inventory: Inventory) -> list[str]:
    from export.inspect.charts import measures
    from export.inspect.units import UNKNOWN

    cells = [cell for m in measures(inventory) for cell in (m.text(m.value(row)), m.share(row))]
    return [*cells, UNKNOWN if row.intensity is None else f"{row.intensity:.1f}"]


if __name__ == "__main__":
    cli.run(main)

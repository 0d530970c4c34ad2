"""python -m export.sensitivity MODEL: what int8 does to each layer alone, and what time it saves there."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from export import options
from export.activations import ACTIVATIONS
from export.exporters import EXPORTERS
from export.search import RANKING_IMAGES, flags
from export.starting import EXACT_IMAGES
from trainers import cli, models
from trainers.manifest import UserError, write_atomic
from trainers.qat import SUFFIX

if TYPE_CHECKING:
    from export.search.records import Sensitivity

TOP = 20
EXAMPLES = """\
examples:
  python -m export.sensitivity resnet18                        on 64 validation images
  python -m export.sensitivity convnext --target tensorrt --images 256 --top 58
  python -m export.sensitivity resnet18 --costs fp32.json --costs int8.json

Damage is KL(softmax of fp32 || softmax of int8) with one layer quantized, all others in float. The record, a CSV file
and a chart go to artifacts/MODEL/sensitivity. Interrupted with Ctrl-C, it goes on where it stopped. To let the ranking
choose which layers are int8: python -m export MODEL --quantize auto
"""


def parser() -> cli.Parser:
    made = cli.Parser(
        prog="python -m export.sensitivity",
        epilog=EXAMPLES,
        description="Rank a model's layers by the damage that int8 does in each alone, for the time that it saves.",
    )
    made.add_argument("model", metavar="MODEL", help=f"{', '.join(models.names())}, or a trained --name")
    made.add_argument("--exporter", choices=("auto", *EXPORTERS), default="auto", help="default: auto")
    made.add_argument("--gelu", choices=tuple(ACTIVATIONS), default="exact", help="default: exact")
    made.add_argument("--target", choices=("cpu", "tensorrt"), help="default: tensorrt with an NVIDIA GPU, else cpu")
    made.add_argument(
        "--images", type=cli.positive, default=RANKING_IMAGES, metavar="N", help=f"default: {RANKING_IMAGES}"
    )
    flags.add_costs(made)
    made.add_argument("--calibration-data", metavar="NAME|PATH", help="default: the data it was trained on")
    made.add_argument("--calibration-images", type=cli.positive, default=256, metavar="N", help="default: 256")
    made.add_argument(
        "--verify-images",
        metavar="N|all",
        help=f"test images that the fp32 file is verified on, if it has to be made (default: {EXACT_IMAGES})",
    )
    made.add_argument("--top", type=cli.positive, default=TOP, metavar="N", help=f"rows shown (default: {TOP})")
    made.add_argument("--cache", type=Path, metavar="DIR", help="for decoded data (default: the user's cache folder)")
    cli.add_common(made)
    return made


def main() -> int:
    arguments = parser().parse_args()
    if arguments.model.endswith(SUFFIX):
        raise UserError(f"{arguments.model} was trained in int8; give the checkpoint that it came from")
    record, path = _measure(arguments)
    _report(record, path, arguments)
    return cli.OK


def _measure(arguments: argparse.Namespace) -> tuple[Sensitivity, Path]:
    """The record, measured or found, and where it lies with its CSV file and chart."""
    from export.search import chart, tables
    from export.search.damage import rank
    from export.search.savings import prices
    from export.search.subject import Subject

    with contextlib.ExitStack() as stack:
        job, variants = options.opened(_exported(arguments), stack)
        subject = Subject.of(job, next(variant for variant in variants if variant.precision == "int8"))
    record, path = rank(subject, arguments.images, prices(subject, arguments.costs))
    write_atomic(path.with_suffix(".csv"), tables.as_csv(record).encode())
    chart.draw(record, path.with_suffix(".png"))
    return record, path


def _exported(arguments: argparse.Namespace) -> argparse.Namespace:
    """The command line that would export the file whose layers are examined."""
    return options.arguments_of(
        arguments.model, quantize="int8", artifacts=arguments.artifacts, exporter=arguments.exporter,
        gelu=arguments.gelu, target=arguments.target, calibration_data=arguments.calibration_data,
        calibration_images=arguments.calibration_images, verify_images=arguments.verify_images, cache=arguments.cache,
    )  # fmt: skip


def _report(record: Sensitivity, path: Path, arguments: argparse.Namespace) -> None:
    from export.search import tables

    cli.table(tables.title(record), tables.COLUMNS, tables.rows(record, arguments.top), stderr=arguments.json)
    out = sys.stderr if arguments.json else sys.stdout
    hidden = len(record.layers) - arguments.top
    if hidden > 0:
        print(f"{hidden} layers more in {path.with_suffix('.csv')}; or add --top {len(record.layers)}", file=out)
    if arguments.json:
        cli.emit(record.to_document())
    print(f"OK: {len(record.layers)} layers: {path}, look at {path.with_suffix('.png')}", file=out)


if __name__ == "__main__":
    cli.run(main)

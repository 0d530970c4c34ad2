"""python -m export.gelu MODEL: what it costs a model to compute another function in GELU's place."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from export import activations, options, starting
from trainers import cli
from trainers.manifest import UserError

if TYPE_CHECKING:
    from export.job import Job
    from export.study.record import Study

EXAMPLES = """\
examples:
  python -m export.gelu convnext                          all five, on 1,000 test images
  python -m export.gelu convnext --gelu tanh,relu --images all
  python -m export.gelu convnext --finetune-steps 200     and once more after a short fine-tuning of each
  python -m export.gelu convnext --gelu acts.py:mine      a function of your own: Tensor -> Tensor
  python -m export convnext --gelu relu --checkpoint artifacts/convnext/gelu/relu-…/checkpoint.safetensors
                                                          the fine-tuned weights as a file

Leaves gelu.json, gelu.csv, gelu.md and gelu.png in artifacts/MODEL/gelu. What was computed before is not computed
again. For the latency column run python -m runtime bench MODEL in between.
"""


def parser() -> cli.Parser:
    made = cli.Parser(
        prog="python -m export.gelu",
        epilog=EXAMPLES,
        description="Measure what other functions in GELU's place cost and save: error, accuracy, operators, latency.",
    )
    made.add_argument("model", metavar="MODEL", help="a trained model's name, or FILE.py:FACTORY")
    made.add_argument(
        "--model", dest="factory", metavar="FILE.py:FACTORY", help="the file of a model of your own: no record runs it"
    )
    made.add_argument(
        "--gelu",
        action="append",
        metavar="NAMES|FILE.py:FUNCTION",
        help=f"with commas, or given several times (default: {','.join(activations.ACTIVATIONS)})",
    )
    made.add_argument(
        "--images",
        type=_count,
        default=1000,
        metavar="N|all",
        help="test images to measure accuracy on (default: 1000)",
    )
    made.add_argument(
        "--finetune-steps", type=cli.positive, default=0, metavar="N", help="fine-tune each activation (default: not)"
    )
    made.add_argument("--cache", type=Path, metavar="DIR", help="for decoded data (default: the user's cache folder)")
    cli.add_common(made)
    return made


def main() -> int:
    arguments = parser().parse_args()
    gelus = [activations.parse(name) for text in arguments.gelu or activations.ACTIVATIONS for name in text.split(",")]
    job = _job(arguments)

    from export.study.study import FOLDER, study

    found = study(job, gelus, arguments.finetune_steps, arguments.artifacts)
    folder = job.folder / FOLDER
    _write(found, folder)
    _show(found, arguments.json)
    last = f"OK: {len(found.rows)} activations; look at {folder / 'gelu.png'}"
    print(last, file=sys.stderr if arguments.json else sys.stdout)
    return cli.OK


def _count(text: str) -> int | None:
    return None if text == "all" else cli.positive(text)


_count.__name__ = "value"


def _job(arguments: argparse.Namespace) -> Job:
    """The checkpoint and its images. Raises UserError when there is none, or when it has no GELU."""
    images = "all" if arguments.images is None else arguments.images
    job = starting.start(
        options.arguments_of(
            arguments.model, model=arguments.factory, artifacts=arguments.artifacts, verify_images=images,
            cache=arguments.cache,
        )
    )  # fmt: skip
    _refuse(job)
    if not job.labelled:
        raise UserError(f"{job.checkpoint.model} has no images with labels of its classes, so accuracy cannot be "
                        f"measured; train it on them: python -m trainers {arguments.model} --data FOLDER")  # fmt: skip
    return job


def _refuse(job: Job) -> None:
    """Raise UserError for a model whose GELU cannot be swapped, before any image is read."""
    from export.job import knows_gelu

    checkpoint = job.checkpoint
    if job.file is not None:
        raise UserError("an ONNX file cannot be trained or hooked into; study the checkpoint that it came from")
    if checkpoint.qat is not None:
        raise UserError("a --qat checkpoint is fake-quantized around its GELUs; study the fp32 one that it came from")
    if not knows_gelu(job):
        raise UserError(f"{checkpoint.model} has no GELU module, so there is nothing to swap; choose another model")


def _write(found: Study, folder: Path) -> None:
    from export.study import chart, tables
    from trainers.manifest import write_atomic

    chart.draw(found, folder / "gelu.png")
    write_atomic(folder / "gelu.csv", tables.comma_separated(found).encode())
    write_atomic(folder / "gelu.md", tables.markdown(found).encode())
    found.save(folder / "gelu.json")


def _show(found: Study, json: bool) -> None:
    from export.study import tables

    tables.show(found, stderr=json)
    if json:
        cli.emit(found.to_document())


if __name__ == "__main__":
    cli.run(main)

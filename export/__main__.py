"""python -m export MODEL: write a checkpoint as ONNX files, each verified against PyTorch and recorded."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from export import rewrites
from export.activations import ACTIVATIONS
from export.exporters import EXPORTERS, TORCH
from export.precision import AUTO, METHODS, PRECISIONS, require
from export.variant import OPSET
from trainers import cli, models
from trainers.manifest import CheckFailed, UserError, gpu
from trainers.qat import SUFFIX

if TYPE_CHECKING:
    from export.artifact import Artifact
    from export.pipeline import Job
    from export.variant import Variant
    from trainers.checkpoint import Checkpoint

QUANTIZED = [name for name in PRECISIONS if name != "fp32"]
TARGETS = sorted({target for row in PRECISIONS.values() for target in row.targets})
OPSETS = range(17, 24)

EXAMPLES = """\
examples:
  python -m export resnet18                         fp32 ONNX, verified on 1,000 test images
  python -m export convnext --quantize              and static int8, placed for this machine
  python -m export convnext --quantize fp16 --gelu tanh --exporter both
  python -m export convnext --all                   change one factor at a time: about 19 files
  python -m export simplecnn --train --quantize     train a short checkpoint first if there is none
  python -m export resnet18 --quantize --target tensorrt --calibration-data my-images/
  python -m export resnet18 --quantize --target openvino --calibration-method auto --input-dtype uint8
  python -m export simplecnn-qat                    int8 as python -m trainers simplecnn --qat trained it

Exit status 1: a file was made, but is further from PyTorch than its precision allows; it lies in
artifacts/MODEL/failed. Look at any file with: netron FILE
"""


def parser() -> cli.Parser:
    made = cli.Parser(
        prog="python -m export",
        epilog=EXAMPLES,
        description="Write a checkpoint as ONNX files, each verified against PyTorch.",
    )
    made.add_argument("model", metavar="MODEL", nargs="?", help=f"{', '.join(models.names())}, or a trained --name")
    made.add_argument(
        "--model",
        dest="factory",
        metavar="FILE.py:FACTORY",
        help="the file of a model of your own: no record runs it (not needed where MODEL is written so)",
    )
    made.add_argument("--checkpoint", type=Path, metavar="PATH", help="a checkpoint's .safetensors or .json")
    made.add_argument("--train", action="store_true", help="without a checkpoint, train a short one on embedded data")
    made.add_argument(
        "--exporter",
        choices=(*EXPORTERS, TORCH, "both"),
        default="dynamo",
        help="dynamo (torch.export), eager (TorchScript), torch (the weights as they are)",
    )
    made.add_argument("--gelu", choices=tuple(ACTIVATIONS), default="exact", help="what stands in for GELU")
    made.add_argument(
        "--quantize",
        nargs="?",
        const="int8",
        metavar="PRECISION",
        help=f"{', '.join(QUANTIZED)}, or several with commas (alone: int8)",
    )
    made.add_argument(
        "--target",
        choices=TARGETS,
        help="the engine that int8 is placed for (default: tensorrt with an NVIDIA GPU, else cpu)",
    )
    several = made.add_mutually_exclusive_group()
    several.add_argument("--all", action="store_true", help="every exporter, GELU, precision and target, one at a time")
    several.add_argument("--grid", action="store_true", help="the product of them all")
    made.add_argument(
        "--rewrite",
        metavar="all|none|NAMES",
        help=f"exact graph rewrites: {', '.join(rewrites.NAMES)} (default: none for fp32; for the rest those known to "
        "help the target)",
    )
    made.add_argument("--opset", type=int, choices=OPSETS, default=OPSET, metavar="N", help=f"default: {OPSET}")
    made.add_argument("--batch", type=_batch, default=None, metavar="dynamic|N", help="default: dynamic")
    made.add_argument("--calibration-data", metavar="NAME|PATH", help="default: the data it was trained on")
    made.add_argument(
        "--calibration-method",
        choices=(*METHODS, AUTO),
        default="minmax",
        help="how activation ranges are set (default: minmax; auto: the best of them on held-out images)",
    )
    made.add_argument(
        "--input-dtype",
        choices=("float32", "uint8"),
        default="float32",
        help="uint8: the file takes raw pixels and normalises them itself (default: float32)",
    )
    made.add_argument("--calibration-images", type=cli.positive, default=256, metavar="N", help="default: 256")
    made.add_argument(
        "--verify-images",
        type=_count,
        default=1000,
        metavar="N|all",
        help="test images that parity and accuracy are measured on (default: 1000)",
    )
    made.add_argument("--output", type=Path, metavar="DIR", help="default: the model's folder under --artifacts")
    made.add_argument("--cache", type=Path, metavar="DIR", help="for decoded data (default: the user's cache folder)")
    cli.add_common(made)
    return made


def main() -> int:
    arguments = parser().parse_args()
    precisions = _precisions(arguments)
    checkpoint, source = _checkpoint(arguments)
    job = _job(arguments, checkpoint, source)
    variants = _plan(arguments, precisions, job)
    if any(PRECISIONS[variant.precision].calibrated for variant in variants):
        _ = job.calibration  # images that cannot serve are refused before any work
    if arguments.all or arguments.grid:
        _announce(job, variants, arguments.json)
    artifacts, problems = _export(job, variants)
    return _report(job, artifacts, problems, arguments.json)


def _batch(text: str) -> int | None:
    return None if text == "dynamic" else cli.positive(text)


def _count(text: str) -> int | None:
    return None if text == "all" else cli.positive(text)


_batch.__name__ = _count.__name__ = "value"


def _precisions(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The wanted precisions. Raises UserError, with a hint where `--quantize` has swallowed the model's name."""
    if arguments.model is None and arguments.quantize in models.names():
        raise UserError(
            f"--quantize took {arguments.quantize!r} for a precision; write the model first: "
            f"python -m export {arguments.quantize} --quantize"
        )
    if arguments.model is None and arguments.checkpoint is None:
        raise UserError(f"name a model ({', '.join(models.names())}); for example: python -m export resnet18")
    require(arguments.target, arguments.calibration_method)
    wanted = arguments.quantize.split(",") if arguments.quantize else []
    if "int8" in wanted and arguments.target is None and importlib.util.find_spec("nncf") and not gpu():
        print("hint: --target openvino makes the int8 file for OpenVINO, which is installed here", file=sys.stderr)
    return tuple(cli.choose(name, QUANTIZED, "precision") for name in wanted)


def _checkpoint(arguments: argparse.Namespace) -> tuple[Checkpoint, Path]:
    """The checkpoint and the folder it lies in; trained first if asked. Raises UserError saying how to make one."""
    from trainers import external
    from trainers.checkpoint import NAME, Checkpoint, folder_name

    typed = (text for text in (arguments.model, arguments.factory) if text and external.is_file(text))
    allowed = [external.allow(text) for text in typed]
    if arguments.checkpoint is not None:
        path = arguments.checkpoint.with_suffix(".json")
        if not arguments.checkpoint.is_file() or not path.is_file():
            raise UserError(
                f"{arguments.checkpoint}: no such checkpoint with its record; make one with: "
                f"python -m trainers {arguments.model or 'MODEL'}"
            )
    else:
        path = arguments.artifacts / folder_name(arguments.model) / f"{NAME}.json"
        if not path.is_file():
            if arguments.model.endswith(SUFFIX):
                raise UserError(
                    f"no checkpoint in {path.parent}; make one with: "
                    f"python -m trainers {arguments.model.removesuffix(SUFFIX)} --qat"
                )
            if ":" not in arguments.model:
                cli.choose(arguments.model, models.names(), "model")
            if not arguments.train:
                raise UserError(
                    f"no checkpoint in {path.parent}; make one with: python -m trainers "
                    f"{arguments.model} (or add --train for a short one on embedded data)"
                )
            _train(arguments)
    checkpoint = Checkpoint.load(path)
    if allowed and checkpoint.model not in allowed:
        raise UserError(f"{path} is a {checkpoint.model}, not a {allowed[-1]}; name the file that it was trained from")
    models.get(checkpoint.model)  # a model that must not be run here is refused before any work
    return checkpoint, path.parent


def _train(arguments: argparse.Namespace) -> None:
    """A short checkpoint on the embedded data, by the trainers' own command."""
    from trainers import __main__ as trainers

    flags = [arguments.model, "--artifacts", str(arguments.artifacts)]
    trainers.run(trainers.parser().parse_args(flags))


def _job(arguments: argparse.Namespace, checkpoint: Checkpoint, source: Path) -> Job:
    from export.pipeline import Job
    from trainers.open import open_dataset, reopen

    if arguments.calibration_data is None:
        data = reopen(
            checkpoint.data, shape=checkpoint.input_shape, num_classes=len(checkpoint.classes), cache=arguments.cache
        )
    else:
        data = open_dataset(
            arguments.calibration_data,
            shape=checkpoint.input_shape,
            cache=arguments.cache,
            num_classes=len(checkpoint.classes),
            seed=checkpoint.data.seed,
        )
        if len(data.classes) not in (len(checkpoint.classes), checkpoint.data.classes_used):
            raise UserError(
                f"{arguments.calibration_data} has {len(data.classes)} classes and the model "
                f"{len(checkpoint.classes)}; give data of the same classes"
            )
    return Job(
        checkpoint=checkpoint,
        source=source,
        folder=arguments.output or source,
        data=data,
        calibration_images=arguments.calibration_images,
        calibration_method=arguments.calibration_method,
        verify_images=arguments.verify_images,
    )


def _plan(arguments: argparse.Namespace, precisions: tuple[str, ...], job: Job) -> list[Variant]:
    import torch

    from export.activations import has_gelu
    from export.plan import Wish, plan, plan_trained
    from trainers.checkpoint import build

    with torch.device("meta"):
        gelu = has_gelu(build(job.checkpoint))
    wish = Wish(
        exporter=arguments.exporter,
        gelu=arguments.gelu,
        precisions=precisions,
        batch=arguments.batch,
        target=arguments.target or ("tensorrt" if gpu() else "cpu"),
        opset=arguments.opset,
        input_dtype=arguments.input_dtype,
        rewrites=None if arguments.rewrite is None else rewrites.parse(arguments.rewrite),
        all=arguments.all,
        grid=arguments.grid,
    )
    return plan(wish, gelu) if job.checkpoint.qat is None else plan_trained(wish, arguments.target)


def _announce(job: Job, variants: list[Variant], json: bool) -> None:
    """List what will be made, with expected sizes and time, before the work starts."""
    from export.estimate import estimate_seconds, estimate_size

    rows = [(v.name(job.checkpoint.model), cli.megabytes(estimate_size(job.checkpoint, v))) for v in variants]
    minutes = estimate_seconds(job, variants) / 60
    cli.table(
        f"{len(variants)} artifacts, about {minutes:.0f} min"
        if minutes >= 1.5
        else f"{len(variants)} artifacts, about {60 * minutes:.0f} s",
        ("variant", ">about"),
        rows,
        stderr=json,
    )


def _export(job: Job, variants: list[Variant]) -> tuple[list[Artifact], list[str]]:
    """Make each variant; one that cannot be made is a problem of its own, not the end of the others."""
    from export.pipeline import export

    artifacts, problems = [], []
    for number, variant in enumerate(variants, 1):
        name = variant.name(job.checkpoint.model)
        print(f"[{number}/{len(variants)}] {name}", file=sys.stderr, flush=True)
        try:
            artifacts.append(export(job, variant))
        except CheckFailed as error:
            problems.append(str(error))
        except UserError as error:
            if len(variants) <= 2:
                raise
            problems.append(f"{name}: {error}")
    return artifacts, problems


def _report(job: Job, artifacts: list[Artifact], problems: list[str], json: bool) -> int:
    """The table, the problems, and one last line that says how it went."""
    from export import tables

    failed = [a for a in artifacts if not a.parity.passed]
    problems = problems + [f"{a.variant.name(a.model)}: {a.parity.reason}" for a in failed]
    if artifacts:
        tables.show(artifacts, job.data.info.name, stderr=json)
    for problem in problems:
        print(f"  {problem}", file=sys.stderr)
    if json:
        cli.emit({"artifacts": [a.to_document() for a in artifacts], "problems": problems})
    last = (
        f"FAILED: {len(problems)} of {len(artifacts) + len(problems) - len(failed)} variants"
        if problems
        else f"OK: {len(artifacts)} artifacts in {job.folder}; look at one with: netron "
        f"{job.folder / artifacts[-1].file.path}"
    )
    print(last, file=sys.stderr if json else sys.stdout)
    return cli.FAILED if problems else cli.OK


if __name__ == "__main__":
    cli.run(main)

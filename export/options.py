"""The command line of `python -m export`: its flags, and the job and the variants that they stand for."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from export import rewrites, starting
from export.activations import ACTIVATIONS
from export.activations import parse as parse_gelu
from export.exporters import EXPORTERS, TORCH
from export.foreign import LOWEST_OPSET
from export.precision import AUTO, METHODS, OPENVINO, PRECISIONS, methods, require
from export.search import AUTO as SEARCHED
from export.search import flags
from export.starting import EXACT_IMAGES, VERIFY_IMAGES
from export.variant import OPSET
from trainers import cli, models
from trainers.manifest import UserError, gpu

if TYPE_CHECKING:
    from export.choice import Choice
    from export.job import Job
    from export.variant import Variant

QUANTIZED = [*(name for name in PRECISIONS if name != "fp32"), SEARCHED]
TARGETS = sorted({target for row in PRECISIONS.values() for target in row.targets})
OPSETS = range(17, 24)
ALL = sys.maxsize  # images

EXAMPLES = """\
examples:
  python -m export resnet18                         fp32 ONNX, verified on test images
  python -m export convnext --quantize              and static int8 for each engine of this machine
  python -m export convnext --quantize fp16 --gelu tanh --exporter both
  python -m export convnext --all                   change one factor at a time: about 19 files
  python -m export simplecnn --train --quantize     train a short checkpoint first if there is none
  python -m export torchvision:mobilenet_v3_small --quantize     published weights, or random ones
  python -m export nets.py:make --weights best.pt --input 3x160x96
  python -m export path/to/model.onnx --quantize    without PyTorch: judged against the file itself
  python -m export resnet18 --quantize --target tensorrt --calibration-data my-images/
  python -m export resnet18 --quantize --target openvino --calibration-method auto --input-dtype uint8
  python -m export resnet18 --quantize auto --max-drop 0.2       leaves in float what int8 would damage
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
    starting.add_flags(made)
    made.add_argument(
        "--exporter",
        choices=("auto", *EXPORTERS, TORCH, "both"),
        default="auto",
        help="dynamo (torch.export), eager (TorchScript), torch (the weights as they are), both, or auto (default): of "
        "dynamo and eager the one whose file is right, then has fewer nodes, then is smaller",
    )
    made.add_argument(
        "--gelu",
        type=parse_gelu,
        default="exact",
        metavar="NAME|FILE.py:FUNCTION",
        help=f"what stands in for GELU: {', '.join(ACTIVATIONS)}, or a function of your own",
    )
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
        help="the engine that int8 is placed for (default: tensorrt with an NVIDIA GPU, else cpu, and openvino too "
        "where NNCF is installed)",
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
    made.add_argument(
        "--functions", action="store_true", help="keep GELU and activations of your own as ONNX local functions"
    )
    made.add_argument(
        "--training", action="store_true", help="also write the graph that training sees (TorchScript), to look at"
    )
    made.add_argument("--reproduce", action="store_true", help="make each file twice and compare their bytes")
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
        metavar="N|all",
        help=f"test images that parity and accuracy are measured on (default: {VERIFY_IMAGES}; {EXACT_IMAGES} for what "
        "computes as PyTorch does, where numbers decide)",
    )
    flags.add_flags(made)
    made.add_argument("--output", type=Path, metavar="DIR", help="default: the model's folder under --artifacts")
    made.add_argument("--cache", type=Path, metavar="DIR", help="for decoded data (default: the user's cache folder)")
    cli.add_common(made)
    return made


def arguments_of(model: str, /, **values: object) -> argparse.Namespace:
    """What `python -m export MODEL` is given with these flags (None: left out), for commands that begin as it does."""
    given = [(f"--{name.replace('_', '-')}", str(value)) for name, value in values.items() if value is not None]
    return parser().parse_args([model, *(text for pair in given for text in pair)])


def opened(arguments: argparse.Namespace, stack: contextlib.ExitStack) -> tuple[Job, list[Variant]]:
    """The job, and the variants asked for; those to be searched as plain int8. Bad flags are refused before any work.

    Files that were made to compare the exporters wait until `stack` is left.
    """
    precisions = _precisions(arguments)
    job = starting.start(arguments)
    variants = _plan(arguments, precisions, job)
    _check_size(job, variants)
    choice = _choice(arguments, precisions, job, stack)
    return job, variants if choice is None else _plan(arguments, precisions, job, choice)


def _check_size(job: Job, variants: Sequence[Variant]) -> None:
    """Raise UserError where a form would have to hold more weights than one protobuf message can."""
    from export.exporters import LARGE

    changed = next((v for v in variants if v.exporter != TORCH and (v.precision != "fp32" or v.rewrites or v.functions
                                                                    or v.input_dtype != "float32")), None)  # fmt: skip
    if changed is not None and 4 * job.checkpoint.parameters > LARGE:
        raise UserError(
            f"{job.checkpoint.model} has {4 * job.checkpoint.parameters / 1e9:.1f} GB of weights: beyond "
            f"{LARGE / 1e9:.1f} GB only its plain fp32 file is made; leave --quantize, --rewrite, --functions and "
            "--input-dtype out"
        )


def _batch(text: str) -> int | None:
    return None if text == "dynamic" else cli.positive(text)


def _count(text: str) -> int:
    return ALL if text == "all" else cli.positive(text)


_batch.__name__ = "batch size (dynamic, or a number of images)"  # argparse names the type in its message
_count.__name__ = "count (all, or a number of images)"


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
    chosen = [cli.choose(name, QUANTIZED, "precision") for name in wanted]
    if SEARCHED in chosen and (arguments.all or arguments.grid):
        raise UserError("--quantize auto searches one placement; leave --all and --grid out")
    if arguments.max_drop is not None and SEARCHED not in chosen:
        raise UserError("--max-drop is for --quantize auto alone; what loses too much is left out when it is chosen: "
                        "python -m runtime tune MODEL --max-drop")  # fmt: skip
    return tuple(dict.fromkeys("int8" if name == SEARCHED else name for name in chosen))


def _openvino_too(arguments: argparse.Namespace, job: Job) -> bool:
    """Whether int8 is also made for OpenVINO: on a CPU only measuring tells which of the two is faster."""
    wanted = arguments.quantize.split(",") if arguments.quantize and arguments.target is None else []
    can = importlib.util.find_spec("nncf") is not None and arguments.calibration_method in (*methods(OPENVINO), AUTO)
    return "int8" in wanted and SEARCHED not in wanted and can and job.file is None and not gpu()


def _choice(
    arguments: argparse.Namespace, precisions: Sequence[str], job: Job, stack: contextlib.ExitStack
) -> Choice | None:
    """Which exporter to take where none is named; new files wait until the stack is left."""
    if arguments.exporter in EXPORTERS or job.file is not None or job.checkpoint.qat is not None:
        return None
    from export.job import recorded_choice
    from export.variant import Variant

    gelu = "exact" if arguments.exporter == TORCH else arguments.gelu
    variant = Variant(gelu=gelu, batch=arguments.batch, opset=arguments.opset)
    made = recorded_choice(job, variant)
    if made is None:
        from export import candidates

        calibrating = any(PRECISIONS[name].calibrated for name in precisions)
        soon = [job.verification, *([job.calibration[0]] if calibrating else [])]
        try:
            made = candidates.settle(job, variant, stack, soon)
        except UserError:
            if arguments.exporter != TORCH:
                raise
            return None
    if arguments.exporter == "both":
        from export import choice

        choice.show(made, stderr=arguments.json)
    return made


def _plan(
    arguments: argparse.Namespace, precisions: tuple[str, ...], job: Job, choice: Choice | None = None
) -> list[Variant]:
    from export.job import knows_gelu
    from export.plan import Wish, plan, plan_file, plan_trained, wants_gelu

    wish = Wish(
        exporter=arguments.exporter,
        baseline=choice.chosen if choice else arguments.exporter if arguments.exporter in EXPORTERS else "dynamo",
        exporters=choice.usable if choice else tuple(EXPORTERS),
        functions=arguments.functions,
        gelu=arguments.gelu,
        precisions=precisions,
        batch=arguments.batch if job.file is None else job.file.batch,
        target=arguments.target or ("tensorrt" if gpu() else "cpu"),
        beside=(OPENVINO,) if _openvino_too(arguments, job) else (),
        opset=arguments.opset if job.file is None else max(job.file.opset, LOWEST_OPSET),
        input_dtype=arguments.input_dtype,
        rewrites=None if arguments.rewrite is None else rewrites.parse(arguments.rewrite),
        all=arguments.all,
        grid=arguments.grid,
    )
    if job.file is not None:
        return plan_file(wish, asked_batch=arguments.batch)
    if job.checkpoint.qat is not None:
        return plan_trained(wish, arguments.target)
    return plan(wish, wants_gelu(wish) and knows_gelu(job))

"""Where an export starts: a checkpoint, a model of any kind that becomes one, or an ONNX file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from trainers import cli, external, models
from trainers.checkpoint import NAME, Checkpoint, folder_name
from trainers.manifest import File, UserError, environment, sha256
from trainers.qat import SUFFIX
from trainers.spec import Preprocess

if TYPE_CHECKING:
    from export.job import Job

ONNX_FILE = ".onnx"
VERIFY_IMAGES, EXACT_IMAGES = 1000, 128  # by default; see Job.judging


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say what is exported."""
    model = parser.add_argument(
        "model", metavar="MODEL", nargs="?",
        help=f"{', '.join(models.names())}, a trained --name, torchvision:NAME, timm:NAME, FILE.py:FACTORY, "
        "or an .onnx file",
    )  # fmt: skip
    cli.names_models(model, *models.names())
    parser.add_argument(
        "--model", dest="factory", metavar="FILE.py:FACTORY",
        help="the file of a model of your own: no record runs it (not needed where MODEL is written so)",
    )  # fmt: skip
    parser.add_argument("--checkpoint", type=Path, metavar="PATH", help="a checkpoint's .safetensors or .json")
    parser.add_argument("--train", action="store_true", help="without a checkpoint, train a short one on embedded data")
    parser.add_argument(
        "--weights", metavar="pretrained|random|FILE",
        help="without training: published weights, random ones, or a .safetensors, .pt or .pth file (default for "
        "torchvision and timm: published if they can be had, else random)",
    )  # fmt: skip
    parser.add_argument(
        "--input", type=shape, metavar="CxHxW", help="channels, height, width, where no checkpoint says so"
    )
    parser.add_argument("--name", help="folder under the artifacts (default: the model's name)")


def shape(text: str) -> tuple[int, int, int]:
    """argparse type: channels x height x width."""
    channels, height, width = (cli.positive(part) for part in text.lower().split("x"))
    return channels, height, width


shape.__name__ = "channels x height x width (such as 3x224x224)"


def start(arguments: argparse.Namespace) -> Job:
    """What the command line asks to be exported. Raises UserError saying how to get it."""
    if arguments.checkpoint is None and arguments.model.endswith(ONNX_FILE):
        return _of_file(arguments)
    checkpoint, source = _checkpoint(arguments)
    from export import images
    from export.job import Job

    data, labelled = images.choose(checkpoint, arguments.calibration_data, arguments.cache)
    return Job(
        checkpoint=checkpoint,
        source=source,
        folder=arguments.output or source,
        data=data,
        calibration_images=arguments.calibration_images,
        calibration_method=arguments.calibration_method,
        verify_images=arguments.verify_images or VERIFY_IMAGES,
        exact_images=arguments.verify_images or EXACT_IMAGES,
        reproduce=arguments.reproduce,
        labelled=labelled,
    )


def _checkpoint(arguments: argparse.Namespace) -> tuple[Checkpoint, Path]:
    """The checkpoint and the folder it lies in; trained or adopted first where asked."""
    typed = (text for text in (arguments.model, arguments.factory) if text and ":" in text)
    allowed = [external.allow(text) for text in typed]
    if arguments.checkpoint is not None:
        path = arguments.checkpoint.with_suffix(".json")
        if not arguments.checkpoint.is_file() or not path.is_file():
            raise UserError(
                f"{arguments.checkpoint}: no such checkpoint with its record; make one with: "
                f"python -m trainers {arguments.model or 'MODEL'}"
            )
        checkpoint = Checkpoint.load(path)
    else:
        path = arguments.artifacts / folder_name(arguments.name or arguments.model) / f"{NAME}.json"
        checkpoint = _in_folder(arguments, path)
    if allowed and checkpoint.model not in allowed:
        raise UserError(f"{path} is a {checkpoint.model}, not a {allowed[-1]}; name the model that it was made of, "
                        "or give --name for another folder")  # fmt: skip
    external.check_allowed(checkpoint.model)  # a model that must not be run here is refused before any work
    return checkpoint, path.parent


def _in_folder(arguments: argparse.Namespace, path: Path) -> Checkpoint:
    """The folder's checkpoint; where there is none, or another is asked for, one is made."""
    found = Checkpoint.load(path) if path.is_file() else None
    if found is not None and _serves(found, arguments, path):
        return found
    if found is None and arguments.weights is None and ":" not in arguments.model:
        _train(arguments, path.parent)
        return Checkpoint.load(path)
    from export.adopt import Request, adopt

    name = found.model if found is not None and ":" not in arguments.model else arguments.model
    if ":" not in name:
        cli.choose(name, models.names(), "model")
    name = external.allow(name) if ":" in arguments.model else name
    known = found.input_shape if found is not None and found.model == name else None
    request = Request(
        name=name,
        weights=arguments.weights,
        input_shape=arguments.input or known,
        images=arguments.calibration_data,
        cache=arguments.cache,
    )
    return adopt(request, path.parent)


def _serves(found: Checkpoint, arguments: argparse.Namespace, path: Path) -> bool:
    """Whether the checkpoint in the folder is the one asked for. Raises UserError where a trained one contradicts."""
    same_shape = arguments.input in (None, found.input_shape)
    if found.provenance == "trained":
        if arguments.weights is None and not same_shape:
            raise UserError(f"{path} was trained on images {_text(found.input_shape)}; leave --input out, or give "
                            "--name for another folder")  # fmt: skip
        return arguments.weights is None
    if not same_shape or (":" in arguments.model and found.model != external.allow(arguments.model)):
        return False
    if external.is_file(found.model):  # the user's file may have changed, and with it what it makes by itself
        return arguments.weights is None and found.provenance == "file"
    if arguments.weights in (None, found.provenance):
        if found.provenance == "random":
            print(f"warning: {found.model} has random weights, so no accuracy is measured; --weights pretrained|FILE "
                  "gives others", file=sys.stderr)  # fmt: skip
        return True
    weights = Path(arguments.weights)
    return found.provenance == "file" and found.started_from is not None and weights.is_file() and (
        sha256(weights) == found.started_from.sha256
    )  # fmt: skip


def _train(arguments: argparse.Namespace, folder: Path) -> None:
    """A short checkpoint on the embedded data, by the trainers' own command. Raises UserError where none is asked."""
    if arguments.model.endswith(SUFFIX):
        raise UserError(
            f"no checkpoint in {folder}; make one with: python -m trainers {arguments.model.removesuffix(SUFFIX)} --qat"
        )
    cli.choose(arguments.model, models.names(), "model")
    if not arguments.train:
        raise UserError(
            f"no checkpoint in {folder}; make one with: python -m trainers {arguments.model} (or add --train for a "
            "short one on embedded data, or --weights random)"
        )
    from trainers import __main__ as trainers

    flags = [arguments.model, "--artifacts", str(arguments.artifacts), "--name", folder.name]
    trainers.run(trainers.parser().parse_args(flags))


def _of_file(arguments: argparse.Namespace) -> Job:
    """A job whose model is an ONNX file: nothing of it needs PyTorch's weights."""
    for flag in ("weights", "train", "factory"):
        if getattr(arguments, flag):
            raise UserError(f"--{flag}: an ONNX file has its weights in it; leave it out")
    from export import foreign, images
    from export.job import Job

    path = Path(arguments.model)
    file = foreign.read(path, arguments.input)
    name = folder_name(arguments.name or path.stem)
    folder = arguments.artifacts / name
    if (folder / f"{NAME}.json").is_file():
        raise UserError(f"{folder} holds a checkpoint's artifacts; give --name for another folder")
    channels, *size = file.input_shape
    plain = Preprocess(size=(size[0], size[1]), resize=min(size), mean=(), std=())
    preprocess = file.preprocess if file.preprocess and file.preprocess.size == plain.size else plain
    wanted = arguments.calibration_data or images.SYNTHETIC
    data = images.open_named(wanted, preprocess, channels, arguments.cache, num_classes=None)
    if preprocess is plain:
        preprocess = Preprocess(size=plain.size, resize=plain.resize, mean=data.mean, std=data.std)
        print(f"warning: {path.name} does not say how its images are prepared; taken are the mean {data.mean} and "
              f"deviation {data.std} of {data.info.name}", file=sys.stderr)  # fmt: skip
    classes = file.classes if file.classes and len(file.classes) == file.num_classes else None
    described = Checkpoint(
        model=name, options={}, parameters=file.parameters, input_shape=file.input_shape,
        classes=classes or tuple(f"class {index}" for index in range(file.num_classes)), preprocess=preprocess,
        data=data.info, recipe=external.RECIPE, epochs=0, steps=0, seconds=0.0, metrics=None,
        files=(File.of(path),), environment=environment(), provenance="file",
    )  # fmt: skip
    return Job(
        checkpoint=described,
        source=path.parent,
        folder=arguments.output or folder,
        data=data,
        calibration_images=arguments.calibration_images,
        calibration_method=arguments.calibration_method,
        verify_images=arguments.verify_images or VERIFY_IMAGES,
        exact_images=arguments.verify_images or EXACT_IMAGES,
        reproduce=arguments.reproduce,
        labelled=bool(arguments.calibration_data) and len(data.classes) == file.num_classes,
        file=file,
    )


def _text(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))

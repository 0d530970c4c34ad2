"""python -m trainers MODEL: train a model to a checkpoint."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trainers import cli, models
from trainers.manifest import UserError, environment
from trainers.profiling import Profiler, Window, quiet

if TYPE_CHECKING:
    import torch

    from trainers.checkpoint import Checkpoint
    from trainers.distributed import World
    from trainers.spec import ModelSpec

AUTO = "auto"  # the recipe that is computed as the ladder says
EXAMPLES = """\
examples:
  python -m trainers simplecnn                            the embedded data: nothing to download
  python -m trainers resnet18 --data cifar10              downloads CIFAR-10 once
  python -m trainers convnext --data tiny-imagenet-200.zip --steps 300
  python -m trainers resnet18 --set stem=cifar --set lr=0.2 --epochs 10
  python -m trainers convnext --data tinyimagenet --resume
  python -m trainers resnet18 --steps 20 --profile        what the steps 10 to 14 spend their time on
  python -m trainers nets.py:make --data my-images/ --input 3x64x64      a model of your own
  python -m trainers torchvision:resnet50 --data my-images/ --weights resnet50.pth
  python -m trainers simplecnn --qat                      fine-tune its checkpoint for int8: artifacts/simplecnn-qat
  torchrun --nproc-per-node 2 -m trainers resnet18        several processes, one for each GPU

Ctrl-C saves the step it came in, and --resume goes on from there; a second Ctrl-C ends at once.
"""


def parser() -> cli.Parser:
    made = cli.Parser(prog="python -m trainers", description="Train a model to a checkpoint.", epilog=EXAMPLES)
    model = made.add_argument(
        "model", metavar="MODEL", help=f"{', '.join(models.names())}, FILE.py:FACTORY, torchvision:NAME or timm:NAME"
    )
    cli.names_models(model, *models.names())
    made.add_argument(
        "--data",
        metavar="NAME|PATH",
        help="a source (mnist, cifar10, tinyimagenet, synthetic, synthetic:K) or a folder, zip or tar "
        "(default: synthetic; with --qat the checkpoint's own)",
    )
    made.add_argument(
        "--input", type=_shape, metavar="CxHxW", help="channels, height, width (default: the model's, else 3x224x224)"
    )
    made.add_argument("--classes", type=cli.positive, metavar="N", help="logits (default: as many as the data need)")
    made.add_argument(
        "--weights", type=Path, metavar="FILE", help="start from a .safetensors, .pt or .pth state dict; a last layer "
        "for another number of classes starts fresh"
    )  # fmt: skip
    length = made.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=_above_zero, metavar="N", help="passes over the training split")
    length.add_argument("--steps", type=cli.positive, metavar="N", help="optimizer steps, instead of epochs")
    made.add_argument(
        "--recipe",
        default="default",
        metavar="NAME",
        help="default; auto: computed the way python -m trainers.ladder found best on this machine; or one of the "
        "model's own: fast",
    )
    made.add_argument("--batch-size", type=cli.positive, metavar="B", help="images a step")
    made.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        help="arithmetic of the step; fp16 scales its gradients (default: the recipe's, if the "
        "device computes it in hardware)",
    )
    made.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="torch.compile the model (default: on a GPU)"
    )
    made.add_argument(
        "--shard", action="store_true", default=None, help="under torchrun: spread the model over the processes (FSDP)"
    )
    made.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    made.add_argument("--seed", type=int, metavar="S", help="of weights, order and augmentation (default: 0)")
    made.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="a model option (stem=cifar, size=64) or a recipe field (lr, optimizer, save_every, …)",
    )
    made.add_argument(
        "--qat", action="store_true", help="go on from MODEL's checkpoint with fake quantization, into MODEL-qat"
    )
    made.add_argument("--resume", action="store_true", help="go on from the last saved state, if there is one")
    made.add_argument(
        "--profile",
        nargs="?",
        type=Window.parse,
        const=Window(movable=True),
        metavar="FIRST:COUNT",
        help="profile COUNT steps from step FIRST on (default: 10:5, or where the run has steps)",
    )
    made.add_argument("--name", help="folder under the artifacts (default: the model's name)")
    made.add_argument("--cache", type=Path, metavar="DIR", help="for decoded data (default: the user's cache folder)")
    made.add_argument("--pack-limit", metavar="SIZE", help="stream splits larger than this, e.g. 8G (default: 8G)")
    cli.add_common(made)
    return made


def _shape(text: str) -> tuple[int, int, int]:
    channels, height, width = (int(part) for part in text.lower().split("x"))
    if min(channels, height, width) < 1:
        raise ValueError(text)
    return channels, height, width


_shape.__name__ = "channels x height x width (such as 3x224x224)"


def _above_zero(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


_above_zero.__name__ = "number above 0"  # argparse names the type in its message


def main() -> int:
    arguments = parser().parse_args()
    checkpoint = run(arguments)
    if arguments.json and cli.leads():
        cli.emit(checkpoint.to_document())
    return cli.OK


def run(arguments: argparse.Namespace) -> Checkpoint:
    """Train as the arguments say, alone or with torchrun's other processes, and print the closing line."""
    if arguments.profile:
        quiet()
    from trainers.distributed import World
    from trainers.train import pick_device

    world = World.of_environment()
    device = pick_device(arguments.device, world)
    with world.joined(device):
        return _train(arguments, world, device)


def _train(arguments: argparse.Namespace, world: World, device: torch.device) -> Checkpoint:
    if arguments.qat:
        if world.size > 1:
            raise UserError("--qat trains in one process; start it without torchrun")
        if arguments.profile:
            raise UserError("--qat is not profiled; leave --profile out")
        return _quantized(arguments)

    from trainers import external

    name, settings = external.allow(arguments.model), _settings(arguments)
    spec = _shaped(models.get(name), arguments)

    from trainers import start, train
    from trainers.checkpoint import folder_name
    from trainers.dataset import byte_count
    from trainers.measure import board
    from trainers.measure.switches import auto
    from trainers.open import open_dataset

    chosen = "default" if arguments.recipe == AUTO else arguments.recipe
    named = arguments.data or "synthetic"
    source = named.partition(":")[0]
    # Before any data is read: mistakes come first.
    options, recipe = spec.configure(settings, spec.recipe(source, chosen))
    world.fit(recipe)
    folder = arguments.artifacts / folder_name(arguments.name or name)
    weights = start.read(arguments.weights, recipe) if arguments.weights else None
    logits = start.try_out(name, spec, options, recipe, weights) if _is_new(name, arguments) else None
    count = arguments.classes or logits
    with world.first_here():
        data = open_dataset(
            named,
            shape=spec.shape(options),
            num_classes=count or spec.num_classes,
            seed=arguments.seed or 0,
            cache=arguments.cache,
            pack_limit=byte_count(arguments.pack_limit) if arguments.pack_limit else None,
        )
    data = data.widened(count) if count else data
    fitted = train.fit(spec.recipe(data.info.name, chosen), device)
    if arguments.recipe == AUTO:
        fitted, line = auto(fitted, folder, name, options, device.type, environment())
        train.say(line)
    options, recipe = spec.configure(settings, fitted)
    recipe = world.fit(recipe)
    job = train.Job(model=name, options=options, recipe=recipe, input_shape=spec.shape(options))
    if ":" in name and not count:
        start.confirm(name, spec, options, recipe, len(data.classes))
    if weights:
        job = start.with_weights(job, spec, weights, len(data.classes))
    counts = ", ".join(f"{part} {len(split)}" for part, split in data.splits.items())
    train.say(
        f"{name} on {data.info.name} ({counts}; {data.info.classes_used} classes, chance "
        f"{100 / data.info.classes_used:.1f}%), {recipe.precision}, {world.describe(device)}"
    )
    resume = arguments.resume or world.any(world.restarts > 0)  # torchrun has started all again: go on
    watched = arguments.profile and world.writer
    profiler = Profiler(arguments.profile, folder, arguments.artifacts.parent / "logs") if watched else None
    checkpoint = train.train(job, spec, data, device, folder, resume=resume, world=world, profiler=profiler)
    _close(checkpoint, folder)
    if world.writer:
        board.write_curve(arguments.artifacts.parent / "logs" / folder.name / "train", checkpoint)
    for line in profiler.lines if profiler else ():
        train.say(line)
    return checkpoint


def _quantized(arguments: argparse.Namespace) -> Checkpoint:
    for flag in ("weights", "input", "classes"):
        if getattr(arguments, flag) is not None:
            raise UserError(f"--qat goes on with the checkpoint's own {flag}; leave --{flag} out")
    if arguments.recipe != "default":
        raise UserError("--qat goes on with the checkpoint's own recipe; leave --recipe out")
    from trainers.finetune import quantized

    checkpoint, folder = quantized(arguments, _settings(arguments))
    _close(checkpoint, folder)
    return checkpoint


def _close(checkpoint: Checkpoint, folder: Path) -> None:
    """The closing line."""
    from trainers import train

    metrics = checkpoint.metrics
    assert metrics is not None, "what was trained is measured"
    train.say(
        f"{folder / 'checkpoint.safetensors'}: top-1 {metrics.top1:.2f}%, top-5 {metrics.top5:.2f}% on "
        f"{metrics.images} {metrics.split} images; {metrics.images_per_second:.0f} images/s, "
        f"{checkpoint.seconds:.1f} s, peak {cli.megabytes(metrics.peak_memory_bytes)}"
    )


def _shaped(spec: ModelSpec, arguments: argparse.Namespace) -> ModelSpec:
    """The spec with the input and the classes that the command line asks for."""
    if arguments.input and "size" in spec.options:
        raise UserError("--input: this model is told its image size by --set size=S; leave --input out")
    return replace(
        spec, input_shape=arguments.input or spec.input_shape, num_classes=arguments.classes or spec.num_classes
    )


def _is_new(name: str, arguments: argparse.Namespace) -> bool:
    """Whether it is yet to be seen that model, input and weights go together."""
    return ":" in name or bool(arguments.input or arguments.weights)


def _settings(arguments: argparse.Namespace) -> dict[str, str]:
    """Flags and `--set` pairs as one set of settings; a flag wins over the recipe, not over a contradiction."""
    settings = cli.settings(arguments.settings)
    for key in ("epochs", "steps", "batch_size", "precision", "compile", "shard", "seed"):
        value = getattr(arguments, key)
        if value is None:
            continue
        if key in settings:
            raise UserError(f"{key} is given by its flag and by --set; give it once")
        settings[key] = str(value).lower() if isinstance(value, bool) else str(value)
    return settings


if __name__ == "__main__":
    cli.run(main)

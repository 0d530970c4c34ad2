"""python -m trainers MODEL: train a model to a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from trainers import cli, models
from trainers.manifest import UserError

if TYPE_CHECKING:
    import torch

    from trainers.checkpoint import Checkpoint
    from trainers.distributed import World

EXAMPLES = """\
examples:
  python -m trainers simplecnn                            the embedded data: nothing to download
  python -m trainers resnet18 --data cifar10              downloads CIFAR-10 once
  python -m trainers convnext --data tiny-imagenet-200.zip --steps 300
  python -m trainers resnet18 --set stem=cifar --set lr=0.2 --epochs 10
  python -m trainers convnext --data tinyimagenet --resume
  torchrun --nproc-per-node 2 -m trainers resnet18        several processes, one for each GPU

Ctrl-C loses nothing that was saved: --resume goes on from the last state (see --set save_every=STEPS).
"""


def parser() -> cli.Parser:
    made = cli.Parser(prog="python -m trainers", description="Train a model to a checkpoint.", epilog=EXAMPLES)
    made.add_argument("model", metavar="MODEL", help=", ".join(models.names()))
    made.add_argument(
        "--data",
        default="synthetic",
        metavar="NAME|PATH",
        help="a source (mnist, cifar10, tinyimagenet, synthetic, synthetic:K) or a folder, zip or tar "
        "(default: synthetic)",
    )
    length = made.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=_above_zero, metavar="N", help="passes over the training split")
    length.add_argument("--steps", type=cli.positive, metavar="N", help="optimizer steps, instead of epochs")
    made.add_argument("--recipe", default="default", metavar="NAME", help="default, or one of the model's own: fast")
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
    made.add_argument("--resume", action="store_true", help="go on from the last saved state, if there is one")
    made.add_argument("--name", help="folder under the artifacts (default: the model's name)")
    made.add_argument("--cache", type=Path, metavar="DIR", help="for decoded data (default: the user's cache folder)")
    made.add_argument("--pack-limit", metavar="SIZE", help="stream splits larger than this, e.g. 8G (default: 8G)")
    cli.add_common(made)
    return made


def _above_zero(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


_above_zero.__name__ = "number above 0"  # argparse names the type in its message


def main() -> int:
    arguments = parser().parse_args()
    from trainers.distributed import World
    from trainers.train import pick_device

    world = World.of_environment()
    device = pick_device(arguments.device, world)
    with world.joined(device):
        checkpoint = run(arguments, world, device)
    if arguments.json and cli.leads():
        cli.emit(checkpoint.to_document())
    return cli.OK


def run(arguments: argparse.Namespace, world: World, device: torch.device) -> Checkpoint:
    """Train as the arguments say and print the closing line."""
    spec, settings = models.get(arguments.model), _settings(arguments)

    from trainers import train
    from trainers.checkpoint import folder_name
    from trainers.dataset import byte_count
    from trainers.open import open_dataset

    source = arguments.data.partition(":")[0]
    # Before any data is read: mistakes come first.
    options, recipe = spec.configure(settings, spec.recipe(source, arguments.recipe))
    world.fit(recipe)
    folder = arguments.artifacts / folder_name(arguments.name or arguments.model)
    with world.first_here():
        data = open_dataset(
            arguments.data,
            shape=spec.shape(options),
            num_classes=spec.num_classes,
            seed=arguments.seed or 0,
            cache=arguments.cache,
            pack_limit=byte_count(arguments.pack_limit) if arguments.pack_limit else None,
        )
    options, recipe = spec.configure(settings, train.fit(spec.recipe(data.info.name, arguments.recipe), device))
    recipe = world.fit(recipe)
    job = train.Job(model=arguments.model, options=options, recipe=recipe, input_shape=spec.shape(options))
    counts = ", ".join(f"{name} {len(split)}" for name, split in data.splits.items())
    train.say(
        f"{arguments.model} on {data.info.name} ({counts}; {data.info.classes_used} classes, chance "
        f"{100 / data.info.classes_used:.1f}%), {recipe.precision}, {world.describe(device)}"
    )
    resume = arguments.resume or world.any(world.restarts > 0)  # torchrun has started all again: go on
    checkpoint = train.train(job, spec, data, device, folder, resume=resume, world=world)
    metrics = checkpoint.metrics
    train.say(
        f"{folder / 'checkpoint.safetensors'}: top-1 {metrics.top1:.2f}%, top-5 {metrics.top5:.2f}% on "
        f"{metrics.images} {metrics.split} images; {metrics.images_per_second:.0f} images/s, "
        f"{checkpoint.seconds:.1f} s, peak {cli.megabytes(metrics.peak_memory_bytes)}"
    )
    return checkpoint


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

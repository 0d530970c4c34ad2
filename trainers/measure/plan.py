"""Plan: what the measuring commands have in common, from their flags."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers import cli, models
from trainers.dataset import byte_count
from trainers.manifest import Environment, UserError, environment

if TYPE_CHECKING:
    from trainers.dataset import Dataset
    from trainers.spec import ModelSpec, Option, Recipe

MEMORY_SHARE = 0.8  # of the machine's memory, that one worker may have
# The images that all learn from, unless --images says how many, take the first contender between these times; within
# them, enough steps of the largest batch for a batch norm's averages to settle.
LEARN_S, LEARN_AT_MOST_S = 6.0, 30.0
SETTLING_STEPS = 40
UNUSED = {"shard", "epochs", "steps", "sizes", "accumulate", "ema", "deterministic", "save_every", "seed"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to measure. `seconds` is one contender's timed time over all rounds; `images` may be settled later."""

    model: str
    typed: str  # the model as the command line has it: a path, for one of the user's own
    spec: ModelSpec
    options: dict[str, Option]
    recipe: Recipe
    data: str
    dataset: Dataset = field(repr=False)
    device: str
    seconds: float
    rounds: int
    images: int | None
    cache: Path | None
    pack_limit: int | None
    seed: int
    memory_bytes: int | None
    timeout: float
    environment: Environment

    def images_for(self, pace: float, batches: Sequence[int]) -> int:
        """How many images to learn from, in whole steps at every batch size; `pace` is the first contender's."""
        unit = math.lcm(*batches)
        settled = min(SETTLING_STEPS * max(batches), LEARN_AT_MOST_S * pace)
        wanted = self.images or max(LEARN_S * pace, settled)
        return unit * max(1, math.ceil(wanted / unit))

    def test_images(self, images: int) -> int:
        """How many test images judge what was learnt from `images`: enough to tell, few enough to be quick."""
        return min(len(self.dataset.splits["test"]), 1000, max(200, images // 4))


def add_flags(parser: argparse.ArgumentParser, *, seconds: float, rounds: int) -> None:
    """Add the flags that all measuring commands take."""
    parser.add_argument("model", metavar="MODEL", help=", ".join(models.names()))
    parser.add_argument("--data", default="synthetic", metavar="NAME|PATH", help="as in python -m trainers")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seconds", type=seconds_type, default=seconds, metavar="S",
                        help=f"timed seconds a contender, over all rounds (default: {seconds:g})")  # fmt: skip
    parser.add_argument("--rounds", type=cli.positive, default=rounds, metavar="R",
                        help=f"interleaved rounds (default: {rounds})")  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
                        help="a model option (size=64) or a recipe field (lr, optimizer, …)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of weights, order and augmentation")
    parser.add_argument("--memory-limit", type=byte_count, metavar="SIZE",
                        help=f"a worker's memory, e.g. 4G (default: {MEMORY_SHARE:.1f} of the machine's)")  # fmt: skip
    parser.add_argument("--timeout", type=seconds_type, default=600.0, metavar="S",
                        help="give a row up when compiling or a turn takes longer (default: 600)")  # fmt: skip
    parser.add_argument("--name", help="folder under the artifacts (default: the model's name)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="for decoded data (default: the user's cache folder)")
    parser.add_argument("--pack-limit", type=byte_count, metavar="SIZE", help="stream splits larger than this")
    cli.add_common(parser)


def add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=cli.positive, metavar="N",
                        help="images that each learns from before it is tested, rounded up to whole steps (default: "
                        f"what the first takes {LEARN_S:g} to {LEARN_AT_MOST_S:g} s for)")  # fmt: skip


def seconds_type(text: str) -> float:
    """argparse type: a time above zero."""
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not a time in seconds")
    return value


seconds_type.__name__ = "time in seconds"


def batches(text: str) -> tuple[int, ...]:
    """argparse type: comma-separated batch sizes, each once, ascending."""
    return tuple(sorted({cli.positive(part) for part in text.split(",")}))


batches.__name__ = "list of batch sizes"


def make(arguments: argparse.Namespace, *, owned: frozenset[str]) -> Plan:
    """The flags as a Plan, with the data packed. Raises UserError on what cannot be.

    `owned` names recipe fields that the command decides itself.
    """
    settings = cli.settings(arguments.settings)
    if fixed := sorted((owned | UNUSED) & settings.keys()):
        raise UserError(f"--set {fixed[0]}: this command decides that by itself or by a flag; leave it out")
    settings["seed"] = str(arguments.seed)
    from trainers import external

    name = external.allow(arguments.model)
    spec = models.get(name)

    from trainers import train
    from trainers.open import open_dataset

    device = train.pick_device(arguments.device)
    options, _ = spec.configure(settings, spec.recipe(arguments.data.partition(":")[0]))
    dataset = open_dataset(
        arguments.data, shape=spec.shape(options), num_classes=spec.num_classes, seed=arguments.seed,
        cache=arguments.cache, pack_limit=arguments.pack_limit,
    )  # fmt: skip
    options, recipe = spec.configure(settings, train.fit(spec.recipe(dataset.info.name), device))
    here = environment()
    return Plan(
        model=name, typed=arguments.model, spec=spec, options=options, recipe=recipe,
        data=arguments.data, dataset=dataset,
        device=device.type, seconds=arguments.seconds, rounds=arguments.rounds,
        images=getattr(arguments, "images", None), cache=arguments.cache, pack_limit=arguments.pack_limit,
        seed=arguments.seed, memory_bytes=arguments.memory_limit, timeout=arguments.timeout, environment=here,
    )  # fmt: skip


def described(plan: Plan) -> dict[str, Any]:
    """The plan's part of every record."""
    import shlex
    import sys

    return {
        "environment": plan.environment, "command": shlex.join(sys.orig_argv[1:]), "model": plan.model,
        "options": plan.options, "data": plan.dataset.info, "rounds": plan.rounds,
    }  # fmt: skip

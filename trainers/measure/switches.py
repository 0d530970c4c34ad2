"""Switches from a recipe, and a recipe from the best switches of a ladder that was measured on this machine."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from trainers.manifest import Environment, UserError
from trainers.measure.rung import Switches
from trainers.spec import Option, Recipe

if TYPE_CHECKING:
    from trainers.measure.plan import Plan
    from trainers.measure.results import Ladder


def tuned(plan: Plan) -> Switches:
    """How `python -m trainers` itself trains by the plan's recipe."""
    from trainers.rewrites import selected

    recipe, on_gpu = plan.recipe, plan.device == "cuda"
    return Switches(
        threads=0, loader="packed", batch_size=recipe.batch_size, pin_memory=on_gpu, non_blocking=True,
        item_every_step=False, set_to_none=True, fused=True, precision=recipe.precision,
        channels_last=recipe.channels_last,
        keep_memory=recipe.keep_memory and not on_gpu and sys.platform == "linux",
        rewrites=tuple(name for name in selected(recipe.rewrites) if name in fitting_rewrites(plan)),
        compile="default" if recipe.compile else "",
    )  # fmt: skip


def fitting_rewrites(plan: Plan) -> set[str]:
    """The rewrites that find something in the plan's model."""
    from trainers.rewrites import REWRITES, rewrite

    shape = plan.spec.shape(plan.options)
    found = set()
    for name in REWRITES:
        module = plan.spec.build(num_classes=len(plan.dataset.classes), input_shape=shape, **plan.options)
        if rewrite(module, shape, [name]):
            found.add(name)
    return found


def tuned_recipe(recipe: Recipe, switches: Switches) -> Recipe:
    """The recipe computed the way these switches say; what is learnt, and from which batches, stays."""
    return msgspec.structs.replace(
        recipe, precision=switches.precision, channels_last=switches.channels_last, compile=bool(switches.compile),
        keep_memory=switches.keep_memory, rewrites=",".join(switches.rewrites) or "none",
    )  # fmt: skip


def newest_ladder(
    folder: Path, model: str, options: Mapping[str, Option], device: str, here: Environment
) -> tuple[Ladder | None, str]:
    """The newest ladder of this very training under `folder`/ladder, and why there is none, or a broken one's reason.

    It must be of the same model and options, on this machine: host, CPU, GPU and PyTorch.
    """
    from trainers.measure.results import Ladder

    reason = "no ladder was measured; make one with python -m trainers.ladder"
    for path in sorted((folder / "ladder").glob("*.json"), reverse=True):
        try:
            ladder = Ladder.load(path)
        except UserError as error:
            reason = str(error)
            continue
        if (ladder.model, ladder.options, ladder.device) != (model, dict(options), device):
            reason = f"{path} is of another model, model option or device"
        elif _machine(ladder.environment) != _machine(here):
            reason = f"{path} is of another machine or PyTorch"
        elif ladder.best is not None:
            return ladder, str(path)
    return None, reason


def auto(
    recipe: Recipe, folder: Path, model: str, options: Mapping[str, Option], device: str, here: Environment
) -> tuple[Recipe, str]:
    """The recipe fitted by the newest ladder, and a line that says what was taken; without one it stays as it is."""
    ladder, source = newest_ladder(folder, model, options, device, here)
    if ladder is None or ladder.best is None:
        return recipe, f"--recipe auto: the defaults ({source})"
    fitted = tuned_recipe(recipe, ladder.best.switches)
    taken = ("precision", "channels_last", "compile", "keep_memory", "rewrites")
    return fitted, f"--recipe auto: {', '.join(f'{key}={getattr(fitted, key)}' for key in taken)} (from {source})"


def _machine(environment: Environment) -> tuple[object, ...]:
    return environment.host, environment.cpu, environment.gpu, environment.packages.get("torch")

"""What a run starts from: whether the model can be trained on such images, and the weights it begins with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
from torch import nn

from trainers.external import PROVISIONAL_CLASSES, probe
from trainers.learner import resized
from trainers.manifest import UserError
from trainers.spec import ModelSpec, Option, Recipe, legs_of
from trainers.train import Job
from trainers.weights import Weights
from trainers.weights import read as read_weights


def read(path: Path, recipe: Recipe) -> Weights:
    """The weights to start from. Raises UserError, also where the recipe would draw others in their place."""
    if recipe.init != "default":
        raise UserError(f"--weights and init={recipe.init} exclude each other; give one of them")
    return read_weights(path)


def try_out(
    name: str, spec: ModelSpec, options: Mapping[str, Option], recipe: Recipe, weights: Weights | None
) -> int | None:
    """Build and run the model once, before any data is read. Raises UserError where it cannot be trained.

    Returns its number of logits where the model has a number of its own; None where it follows the data.
    """
    asked = spec.num_classes or PROVISIONAL_CLASSES
    module, logits = probe(name, spec, options, recipe, asked)
    if spec.num_classes is not None and logits != asked:
        raise UserError(f"{name} gives {logits} logits where {asked} are asked for; give --classes {logits}")
    if weights is not None:
        weights.fit(module, None)
    return None if logits == asked else logits


def confirm(name: str, spec: ModelSpec, options: Mapping[str, Option], recipe: Recipe, num_classes: int) -> None:
    """Raise UserError unless the model gives as many logits as the data have classes."""
    _, logits = probe(name, spec, options, recipe, num_classes)
    if logits != num_classes:
        raise UserError(
            f"{name} gives {logits} logits and the data have {num_classes} classes; let it take num_classes, or "
            f"give --classes {logits}"
        )


def with_weights(job: Job, spec: ModelSpec, weights: Weights, num_classes: int) -> Job:
    """The job, going on from these weights, which are for images of the last of its sizes."""

    def build(options: Mapping[str, Option]) -> nn.Module:
        return spec.build(num_classes=num_classes, input_shape=spec.shape(options), **options)

    def start() -> nn.Module:
        module = build(job.options)
        weights.fit(module, num_classes)
        legs = legs_of(job.recipe)
        if not legs:
            return module
        smaller = build({**job.options, "size": legs[0].size})
        smaller.load_state_dict(resized(module.state_dict(), smaller))
        return smaller

    return msgspec.structs.replace(job, start=start, started_from=weights.file)

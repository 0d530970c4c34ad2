"""How long a training run will take, from a few steps that are timed: for a plan, before anything is trained."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from trainers import models
from trainers.dataset import cache_folder
from trainers.learner import Learner
from trainers.prepare import counted
from trainers.source import Request
from trainers.spec import Recipe, legs_of
from trainers.train import fit, pick_device

PIXELS = 8 * 224 * 224  # in a timed step, at most: a whole batch of small images
CLASSES = 10  # where the model follows its data


class Pace(NamedTuple):
    """Seconds that a whole run takes, and that one test image does."""

    run_s: float
    image_s: float


def pace(
    name: str, data: str, recipe_name: str, device_name: str, *, cache: Path | None = None,
    shape: tuple[int, int, int] | None = None,
) -> Pace:  # fmt: skip
    """About how long `python -m trainers NAME --data DATA` takes. Raises UserError where the images cannot be counted.

    Every leg of a recipe with several image sizes is taken to cost as its pixels do.
    """
    spec = models.get(name)
    spec = replace(spec, input_shape=shape or spec.input_shape)
    device = pick_device(device_name)
    options, recipe = spec.configure({}, fit(spec.recipe(data.partition(":")[0], recipe_name), device))
    shape, classes = spec.shape(options), spec.num_classes or CLASSES
    counts = counted(data, Request(shape=shape, num_classes=spec.num_classes), cache or cache_folder())
    module = spec.build(num_classes=classes, input_shape=shape, **options)
    trained, tested = _timed(Learner(module, recipe, device, shape), shape, classes)
    whole = sum(
        size**2 / shape[1] ** 2 * (trained * images + tested * tests)
        for size, images, tests in _legs(recipe, shape[1], counts)
    )
    return Pace(run_s=whole, image_s=tested)


def _legs(recipe: Recipe, size: int, counts: dict[str, int]) -> list[tuple[int, float, float]]:
    """The image sizes of a run, each with how many images are trained and tested: every epoch ends in a test."""
    if recipe.steps:
        return [(size, recipe.steps * recipe.batch_size, counts["test"])]
    legs = [(leg.size, leg.epochs) for leg in legs_of(recipe)] or [(size, recipe.epochs)]
    return [(size, epochs * counts["train"], epochs * counts["test"]) for size, epochs in legs]


def _timed(learner: Learner, shape: tuple[int, int, int], classes: int) -> tuple[float, float]:
    """Seconds an image of a training step, and of a test."""
    batch = max(1, min(PIXELS // math.prod(shape[1:]), learner.recipe.batch_size))
    images = torch.randn(batch, *shape, device=learner.device)
    labels = torch.arange(batch, device=learner.device) % classes
    learner.module.train()
    trained = _second(lambda: learner.step(images, labels, 0.0).sum().item())
    learner.plain.eval()
    with torch.inference_mode():
        tested = _second(lambda: learner.plain(images).sum().item())
    return trained / batch, tested / batch


def _second(step: Callable[[], object]) -> float:
    """Seconds of the second of two calls: the first one prepares."""
    step()
    began = time.perf_counter()
    step()
    return time.perf_counter() - began

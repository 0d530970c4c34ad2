"""Endless training batches by the loader that the switches name, in the order that seed and epoch fix."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trainers.batches import Batch, augment, steps_per_epoch, training_batches
from trainers.dataset import Split
from trainers.manifest import UserError, usable_threads
from trainers.measure.rung import Switches
from trainers.pack import Packed
from trainers.preprocess import prepare
from trainers.serving import die_with_parent
from trainers.spec import Preprocess, Recipe

MOST_WORKERS = 8


def feed(
    split: Split, preprocess: Preprocess, recipe: Recipe, switches: Switches, device: torch.device
) -> Iterator[Batch]:
    """Batches of `recipe.batch_size`: on the host for the DataLoader's two ways, on the device for packed ones.

    Raises UserError where worker processes cannot share the images.
    """
    if switches.loader == "packed":
        for epoch in itertools.count():
            yield from training_batches(split, preprocess, recipe, epoch, 0, device)
    workers = min(MOST_WORKERS, usable_threads()) if switches.loader == "workers" else 0
    if workers and not isinstance(split, Packed):
        raise UserError("images streamed from an archive cannot be shared by processes; give a larger --pack-limit")
    yield from DataLoader(
        OneByOne(split, preprocess, recipe, _input_type(switches)),
        batch_sampler=Order(split, recipe),  # type: ignore[arg-type]  # any iterable of index lists
        num_workers=workers,
        pin_memory=switches.pin_memory,
        worker_init_fn=_begin,
        multiprocessing_context="fork" if workers else None,  # the memory-mapped pack is shared, not copied
    )


class OneByOne(Dataset[tuple[Tensor, int]]):
    """A split as scripts read one: each image by itself is taken, augmented and normalised."""

    def __init__(self, split: Split, preprocess: Preprocess, recipe: Recipe, dtype: torch.dtype) -> None:
        self.split, self.preprocess, self.recipe, self.dtype = split, preprocess, recipe, dtype

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.from_numpy(self.split.read(np.array([index])))
        augmented = augment(image, self.recipe, torch.default_generator)
        return prepare(augmented, self.preprocess)[0].to(self.dtype), int(self.split.labels[index])


@dataclass(frozen=True)
class Order:
    """Index lists of shuffled full batches, epoch after epoch: `training_batches`'s own order."""

    split: Split
    recipe: Recipe

    def __iter__(self) -> Iterator[list[int]]:
        size = self.recipe.batch_size
        for epoch in itertools.count():
            order = np.random.default_rng((self.recipe.seed, epoch)).permutation(len(self.split))
            for step in range(steps_per_epoch(self.split, self.recipe)):
                yield order[step * size : (step + 1) * size].tolist()


def _input_type(switches: Switches) -> torch.dtype:
    if not switches.half_input:
        return torch.float32
    return torch.float16 if switches.precision == "fp16" else torch.bfloat16


def _begin(_: int) -> None:
    """A stopped loader process would outlive a killed parent."""
    die_with_parent()

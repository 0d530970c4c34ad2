"""Batches on the device: indices in an order that seed and epoch fix, augmentation on uint8, then preprocessing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.dataset import Split
from trainers.distributed import ALONE, World
from trainers.preprocess import prepare
from trainers.spec import Preprocess, Recipe

GREY = 127  # what an erased pixel becomes
IGNORED = -100  # a label that cross_entropy leaves out
Batch = tuple[Tensor, Tensor]  # images float32 (N, C, H, W), labels int64 (N,)


def steps_per_epoch(split: Split, recipe: Recipe) -> int:
    """Full batches in the split; a split smaller than a batch is one step."""
    return max(1, len(split) // recipe.batch_size)


def training_batches(
    split: Split,
    preprocess: Preprocess,
    recipe: Recipe,
    epoch: int,
    start: int,
    device: torch.device,
    world: World = ALONE,
) -> Iterator[Batch]:
    """One epoch's shuffled, augmented batches from step `start` on; equal arguments give equal batches.

    Each process of a world gets its part of the batches that one alone would get. Raises UserError when it has none.
    """
    batch = min(recipe.batch_size, len(split))
    part = world.part(batch)
    permutation = np.random.default_rng((recipe.seed, epoch)).permutation(len(split))
    orders = [_cut(permutation, step, recipe.batch_size) for step in range(start, steps_per_epoch(split, recipe))]
    generator = torch.Generator(device=device)
    for step, (images, labels) in enumerate(_on_device(split, [order[part] for order in orders], device), start):
        # A seed for each step instead of a running state: a resumed run draws what an uninterrupted one would.
        generator.manual_seed(hash((recipe.seed, epoch, step)) % 2**63)
        yield prepare(augment(images, recipe, generator, batch, part), preprocess), labels


def evaluation_batches(
    split: Split,
    preprocess: Preprocess,
    batch_size: int,
    device: torch.device,
    indices: np.ndarray | None = None,
    world: World = ALONE,
) -> Iterator[Batch]:
    """The split's images (or those at `indices`) in order, preprocessed.

    Each process of a world gets its part of every batch. A sharded model needs all of them in each forward pass, so
    one whose part is empty gets an image labelled IGNORED.
    """
    chosen = np.arange(len(split)) if indices is None else indices
    orders = [_cut(chosen, step, batch_size) for step in range(-(-len(chosen) // batch_size))]
    parts = [np.array_split(order, world.size)[world.rank] for order in orders]
    filled = [part if len(part) else order[:1] for part, order in zip(parts, orders, strict=True)]
    for part, (images, labels) in zip(parts, _on_device(split, filled, device), strict=True):
        yield prepare(images, preprocess), labels if len(part) else torch.full_like(labels, IGNORED)


def augment(
    images: Tensor, recipe: Recipe, generator: torch.Generator, batch: int | None = None, part: slice = slice(None)
) -> Tensor:
    """Mirror, shift and blank uint8 images (N, H, W, C), each by its own draw.

    Where they are only `part` of a batch, the draws are those that they would get in the whole of it.
    """
    count, height, width, _ = images.shape
    batch = batch or count
    device = images.device
    if recipe.flip:
        mirrored = torch.rand(batch, generator=generator, device=device)[part] < 0.5
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(2), images)
    if recipe.crop:
        pad = recipe.crop
        padded = F.pad(images, (0, 0, pad, pad, pad, pad))
        shift = torch.randint(2 * pad + 1, (2, batch, 1), generator=generator, device=device)[:, part]
        rows = shift[0] + torch.arange(height, device=device)
        columns = shift[1] + torch.arange(width, device=device)
        images = padded[torch.arange(count, device=device).view(-1, 1, 1), rows[:, :, None], columns[:, None, :]]
    if recipe.erase:
        images = torch.where(_rectangles(batch, height, width, recipe.erase, generator)[part], GREY, images)
    return images


def _rectangles(count: int, height: int, width: int, share: float, generator: torch.Generator) -> Tensor:
    """Random erasing's rectangles as a mask (N, height, width, 1): 2 to 33% of the area, aspect 0.3 to 3.3.

    Zhong et al., "Random Erasing Data Augmentation" (2017); a rectangle that sticks out is cut off at the edge.
    """
    draw = torch.rand(5, count, 1, generator=generator, device=generator.device)
    area, aspect = 0.02 + 0.31 * draw[1], torch.exp((2 * draw[2] - 1) * math.log(10 / 3))
    high, wide = height * torch.sqrt(area * aspect), width * torch.sqrt(area / aspect)
    top, left = draw[3] * (height - high).clamp(min=0), draw[4] * (width - wide).clamp(min=0)
    y, x = torch.arange(height, device=draw.device), torch.arange(width, device=draw.device)
    rows, columns = (top <= y) & (y < top + high), (left <= x) & (x < left + wide)
    return ((draw[0] < share)[:, :, None] & rows[:, :, None] & columns[:, None, :])[..., None]


def _cut(order: np.ndarray, step: int, batch_size: int) -> np.ndarray:
    return order[step * batch_size : (step + 1) * batch_size]


def _on_device(split: Split, orders: Sequence[np.ndarray], device: torch.device) -> Iterator[Batch]:
    pin = device.type == "cuda"  # copies from pinned memory overlap with the step before
    for order, images in zip(orders, split.stream(orders), strict=True):
        pair = torch.from_numpy(images), torch.from_numpy(split.labels[order])
        if pin:
            pair = pair[0].pin_memory(), pair[1].pin_memory()
        yield pair[0].to(device, non_blocking=True), pair[1].to(device, non_blocking=True)

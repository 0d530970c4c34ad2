"""The images an export is calibrated and judged on: those that a checkpoint's record names, or the user's own.

What a record says of its images (how many, which hash) is enough to know a finished artifact again, so the images
themselves are opened only when something has to be made.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.dataset import DataInfo, Dataset, Split, SplitInfo
from trainers.manifest import UserError
from trainers.spec import Preprocess

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from trainers.checkpoint import Checkpoint

SYNTHETIC = "synthetic"  # the source that needs no files
DRAWN = 24  # pixels of the shorter side that procedural images are drawn at, at least


@dataclass(eq=False)
class Recorded:
    """A Split that a record describes; its pixels and labels are opened when they are first asked for."""

    name: str
    info: SplitInfo
    open: Callable[[], Dataset]

    @cached_property
    def _opened(self) -> Split:
        return self.open().splits[self.name]

    @property
    def labels(self) -> NDArray[np.int64]:
        return self._opened.labels

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._opened.shape

    @property
    def sha256(self) -> str:
        return self.info.sha256

    def __len__(self) -> int:
        return self.info.count

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self._opened.read(indices)

    def stream(self, order: Iterable[NDArray[np.int64]]) -> Iterator[NDArray[np.uint8]]:
        return self._opened.stream(order)


def stored_shape(channels: int, preprocess: Preprocess) -> tuple[int, int, int]:
    """(channels, height, width) that images are kept at, so that only the centre has to be cut out of them."""
    scale = preprocess.resize / min(preprocess.size)
    height, width = (round(scale * side) for side in preprocess.size)
    return channels, height, width


def synthetic_shape(channels: int, preprocess: Preprocess) -> tuple[int, int, int]:
    """(channels, height, width) of the procedural images for a model that was not trained on any.

    A whole fraction of the size wanted is drawn, and scaled up: drawing large images takes minutes.
    """
    _, height, width = stored_shape(channels, preprocess)
    common = math.gcd(height, width)
    divisor = max(n for n in range(1, common + 1) if common % n == 0 and (min(height, width) >= DRAWN * n or n == 1))
    return channels, height // divisor, width // divisor


def choose(checkpoint: Checkpoint, wanted: str | None, cache: Path | None) -> tuple[Dataset, bool]:
    """The images named by `--calibration-data`, or else by the record; and whether their labels are the model's.

    Raises UserError where the images named are of other classes than the model was trained for.
    """
    if wanted is None:
        return recorded(checkpoint, cache), checkpoint.metrics is not None
    data = open_named(wanted, checkpoint.preprocess, checkpoint.input_shape[0], cache, seed=checkpoint.data.seed,
                      num_classes=None if checkpoint.metrics is None else len(checkpoint.classes))  # fmt: skip
    fits = len(data.classes) == len(checkpoint.classes)
    if checkpoint.metrics is None:
        return data, fits
    if not fits and len(data.classes) != checkpoint.data.classes_used:
        raise UserError(
            f"{wanted} has {len(data.classes)} classes and the model {len(checkpoint.classes)}; "
            "give data of the same classes"
        )
    labelled = data.classes == checkpoint.classes[: len(data.classes)]
    if not labelled:
        print(f"note: the classes of {wanted} have other names than the model's, so no accuracy is measured on them",
              file=sys.stderr)  # fmt: skip
    return data, labelled


def open_named(
    wanted: str, preprocess: Preprocess, channels: int, cache: Path | None, *, num_classes: int | None, seed: int = 0
) -> Dataset:
    """Open images for a model with this preprocessing. Raises UserError when there are none."""
    from trainers.open import open_dataset

    shape = (synthetic_shape if wanted == SYNTHETIC else stored_shape)(channels, preprocess)
    return open_dataset(wanted, shape=shape, cache=cache, num_classes=num_classes, seed=seed)


def recorded(checkpoint: Checkpoint, cache: Path | None) -> Dataset:
    """The checkpoint's own images, opened on use. Raises UserError then, when they are gone or have changed."""
    opened: list[Dataset] = []
    trained = checkpoint.metrics is not None
    shape = (stored_shape if trained else synthetic_shape)(checkpoint.input_shape[0], checkpoint.preprocess)
    count = len(checkpoint.classes) if trained else None

    def once() -> Dataset:
        from trainers.open import reopen

        if not opened:
            opened.append(reopen(checkpoint.data, shape=shape, num_classes=count, cache=cache))
        return opened[0]

    info: DataInfo = checkpoint.data
    splits: dict[str, Split] = {name: Recorded(name, split, once) for name, split in info.splits.items()}
    return Dataset(info=info, classes=checkpoint.classes, mean=checkpoint.preprocess.mean,
                   std=checkpoint.preprocess.std, splits=splits)  # fmt: skip

"""Dataset: the images a model is trained, chosen and judged on, whatever source they come from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from trainers.manifest import Struct, UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SPLITS = ("train", "val", "test")
PACKS, DOWNLOADS = "packs", "downloads"  # folders of the cache
LISTING = "listing:"  # how the sha256 of a streamed split begins: hashing every image would cost an epoch
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class SplitInfo(Struct, frozen=True):
    """How many images a split has, and the sha256 over them and their labels."""

    count: int
    sha256: str


class DataInfo(Struct, frozen=True):
    """Which images were used: enough to open them again and to know that they are the same."""

    name: str  # the source: mnist, cifar10, tinyimagenet, folder, synthetic
    path: str | None  # where the user's copy lies; None for a source that needs none
    seed: int  # of the validation split and of procedural images
    classes_used: int  # labels that occur (synthetic data use fewer than the model has logits)
    splits: dict[str, SplitInfo]


class Split(Protocol):
    """One split's images, by index."""

    @property
    def name(self) -> str:
        """train, val or test."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """int64 [N]."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the stored images."""

    @property
    def sha256(self) -> str:
        """Over images and labels; for a streamed split over its listing, and then it says so."""

    def __len__(self) -> int: ...

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """uint8 [B, H, W, C], C-contiguous."""

    def stream(self, order: Iterable[NDArray[np.int64]]) -> Iterator[NDArray[np.uint8]]:
        """`read` for each index array in turn, ahead of time where that helps."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Splits train, val and test, and what their labels and pixels mean.

    `classes` has as many names as the model has logits; `mean` and `std` are the source's convention, one value a
    channel, for pixels in [0, 1].
    """

    info: DataInfo
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    splits: Mapping[str, Split]

    def widened(self, count: int) -> Dataset:
        """The same data for a model with `count` logits, of which some may stay unused. Raises UserError on fewer."""
        if count < len(self.classes):
            raise UserError(f"{self.info.name} has {len(self.classes)} classes and the model {count}; it needs as many")
        spare = tuple(f"unused {index}" for index in range(len(self.classes), count))
        return replace(self, classes=self.classes + spare)


def cache_folder() -> Path:
    """The user's cache folder for this program."""
    import platformdirs

    return platformdirs.user_cache_path("fastform")


def byte_count(text: str) -> int:
    """argparse type: a number of bytes such as 500M or 8G (decimal units). Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip().upper())
    if not match:
        raise ValueError(text)
    return int(float(match[1]) * UNITS[match[2]])


byte_count.__name__ = "number of bytes (such as 500M or 8G)"  # argparse names the type in its message

"""Dataset: the images a model is trained, chosen and judged on, whatever source they come from.

`open_dataset` finds the source, packs its splits into the cache on first use (or streams what is too large to pack)
and gives each as a Split. Nothing heavy is imported before that.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from trainers import data as sources
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


def open_dataset(
    data: str,
    *,
    shape: tuple[int, int, int],
    num_classes: int | None,
    seed: int = 0,
    cache: Path | None = None,
    pack_limit: int | None = None,
    download: bool = True,
) -> Dataset:
    """Open a source by its name (`mnist`, `synthetic:20`) or by the path of a folder or archive.

    `shape` is the (channels, height, width) that the model takes: images get its channels; those of mixed or large
    sizes are scaled and cropped to it. `num_classes` is the model's number of logits, which only procedural data
    follow. Packs and downloads lie in `cache`; above `pack_limit` bytes images are decoded while they are read.
    Raises UserError on data that cannot be found, recognised, fetched or read.
    """
    from trainers.prepare import prepare
    from trainers.source import Request, statistics

    request = Request(shape=shape, num_classes=num_classes, seed=seed, argument=data.partition(":")[2])
    record, splits = prepare(data, request, cache or cache_folder(), pack_limit, download)
    for note in record.notes:
        _warn(note)
    source = sources.get(record.source)
    info = DataInfo(
        name=record.source,
        path=None if data.partition(":")[0] in sources.names() else record.origin,
        seed=seed,
        classes_used=len({label for split in splits.values() for label in set(split.labels.tolist())}),
        splits={name: SplitInfo(count=len(split), sha256=split.sha256) for name, split in splits.items()},
    )
    mean, std = statistics(source.mean, shape[0]), statistics(source.std, shape[0])
    return Dataset(info=info, classes=record.classes, mean=mean, std=std, splits=splits)


def reopen(
    info: DataInfo, *, shape: tuple[int, int, int], num_classes: int | None, cache: Path | None = None
) -> Dataset:
    """Open the images that a record names. Raises UserError when they are gone or are not the same any more."""
    procedural = sources.get(info.name).make is not None
    streamed = any(split.sha256.startswith(LISTING) for split in info.splits.values())
    try:
        found = open_dataset(
            info.path or (f"{info.name}:{info.classes_used}" if procedural else info.name),
            shape=shape, num_classes=num_classes, seed=info.seed, cache=cache,
            pack_limit=0 if streamed else sys.maxsize, download=False,
        )  # fmt: skip
    except UserError as error:
        reason = str(error).rpartition("; ")[0] or error
        raise UserError(f"the training data cannot be opened: {reason}; give --calibration-data PATH") from None
    for name, split in info.splits.items():
        if name not in found.splits or found.splits[name].sha256 != split.sha256:
            raise UserError(f"{info.path or info.name}: its {name} images are not those of the training; "
                            "give --calibration-data PATH, or train again")  # fmt: skip
    return found


@functools.cache
def _warn(note: str) -> None:
    """Once a process: a command may open the same data more than once."""
    print(f"warning: {note}", file=sys.stderr)

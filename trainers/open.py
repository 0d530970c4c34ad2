"""Opening a Dataset: the source is found, its splits packed into the cache on first use, or streamed if too large."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from trainers import data as sources
from trainers.cli import leads
from trainers.dataset import LISTING, DataInfo, Dataset, SplitInfo, cache_folder
from trainers.manifest import UserError
from trainers.prepare import prepare
from trainers.source import Request, statistics


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
    if leads():
        print(f"warning: {note}", file=sys.stderr)

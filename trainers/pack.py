"""Pack: a split decoded once into uint8 arrays in the cache, memory-mapped when it is read.

A pack is a folder: `<split>.npy` and `<split>.labels.npy` for each split, and `record.json`, written last.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from trainers.cli import track
from trainers.images import Images, Indices, Pixels, Shape, Unreadable
from trainers.manifest import Record, Struct, UserError, atomic
from trainers.stream import ahead

RECORD = "record.json"
FORMAT = 2  # part of every pack's key: raised when the same source would be packed differently
BLOCK = 256  # images decoded by one task


class PackedSplit(Struct, frozen=True):
    """One split's two files: how many images of which shape (height, width, channels), and the sha256 over both."""

    count: int
    shape: Shape
    sha256: str

    @property
    def bytes(self) -> int:
        """Size of the images, in bytes."""
        height, width, channels = self.shape
        return self.count * height * width * channels


class PackRecord(Record, frozen=True, kw_only=True):
    """What a pack holds and where it came from."""

    source: str
    origin: str | None  # the file or folder that was read; None for procedural images
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()  # warnings to repeat whenever the pack is opened
    splits: dict[str, PackedSplit] = msgspec.field(default_factory=dict)  # empty while nothing is packed

    @property
    def bytes(self) -> int:
        """Size of all images, in bytes."""
        return sum(split.bytes for split in self.splits.values())


@dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """A Split whose images are memory-mapped."""

    name: str
    array: Pixels
    labels: Indices
    sha256: str

    @property
    def shape(self) -> Shape:
        height, width, channels = self.array.shape[1:]
        return height, width, channels

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: Indices) -> Pixels:
        return np.take(self.array, indices, axis=0)

    def stream(self, order: Iterable[Indices]) -> Iterator[Pixels]:
        return map(self.read, order)


class Damaged(Exception):
    """A pack whose files are not what its record says."""


def write(folder: Path, splits: Mapping[str, Images], record: PackRecord) -> PackRecord:
    """Decode each split into `folder`, then write `record` completed by them, and return it.

    Raises UserError naming the first unreadable image; no record is written then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).unlink(missing_ok=True)
    packed = {name: _write_split(folder, name, images) for name, images in splits.items()}
    record = msgspec.structs.replace(record, splits=packed)
    record.save(folder / RECORD)
    return record


def _write_split(folder: Path, name: str, images: Images) -> PackedSplit:
    labels = np.ascontiguousarray(images.labels, dtype="<i8")
    shape = (len(labels), *images.shape)
    digest = hashlib.sha256(repr(shape).encode())
    blocks = [np.arange(start, min(start + BLOCK, len(labels))) for start in range(0, len(labels), BLOCK)]
    failures: list[Unreadable] = []
    with atomic(folder / f"{name}.npy") as temporary, temporary.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for block in track(ahead(lambda at: _attempt(images, at), blocks), f"packing {name}", len(blocks)):
            if isinstance(block, Unreadable):
                failures.append(block)
            elif not failures:
                digest.update(block.data)
                file.write(block.data)
        if failures:
            raise Unreadable.together(failures)
    with atomic(folder / f"{name}.labels.npy") as temporary:
        np.save(temporary, labels, allow_pickle=False)
    digest.update(labels.data)
    return PackedSplit(count=len(labels), shape=images.shape, sha256=digest.hexdigest())


def _attempt(images: Images, indices: Indices) -> Pixels | Unreadable:
    """Decode a block, or say what could not be read, so that all failures are counted before giving up."""
    try:
        return images.read(indices)
    except Unreadable as error:
        return error


def find(folder: Path) -> PackRecord | None:
    """The pack's record, or None where there is no finished pack (a broken one is announced, and made again)."""
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        return PackRecord.load(path)
    except UserError as error:
        print(f"note: {error}: packing again", file=sys.stderr)
        return None


def open_splits(folder: Path, record: PackRecord) -> dict[str, Packed]:
    """Memory-map every split, its contents checked against the record. Raises Damaged when they differ."""
    return {name: _open_split(folder, name, split) for name, split in record.splits.items()}


def _open_split(folder: Path, name: str, split: PackedSplit) -> Packed:
    try:
        array = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(folder / f"{name}.labels.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise Damaged(f"{folder / name}.npy: {error}") from None
    shape = (split.count, *split.shape)
    if array.shape != shape or array.dtype != np.uint8 or labels.shape != (split.count,) or labels.dtype != np.int64:
        raise Damaged(f"{folder / name}.npy: another shape than its record says")
    digest = hashlib.sha256(repr(shape).encode())
    rows = max((1 << 26) // max(array[:1].nbytes, 1), 1)
    starts = range(0, len(array), rows)
    for start in track(starts, f"checking {name}") if split.bytes > 1 << 31 else starts:
        digest.update(array[start : start + rows].data)
    digest.update(labels.data)
    if digest.hexdigest() != split.sha256:
        raise Damaged(f"{folder / name}.npy: its sha256 is not the recorded one")
    return Packed(name=name, array=array, labels=labels, sha256=split.sha256)

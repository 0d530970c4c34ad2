"""From what `--data` says to three splits: find the files, recognise them, complete the splits, pack or stream."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from trainers import data as sources
from trainers import pack
from trainers.dataset import DOWNLOADS, PACKS, SPLITS, Split
from trainers.download import differences, fetch_all
from trainers.images import Images, cut, recolour
from trainers.manifest import UserError
from trainers.pack import PackRecord
from trainers.source import Raw, Request, Source
from trainers.stream import Streamed
from trainers.tree import Tree, fingerprint, open_tree

SHARE = 0.1  # of each class's training images, for a split that the source lacks
PACK_LIMIT = 8_000_000_000  # bytes; above it, or above half the free disk, a data set is streamed

Prepared = tuple[PackRecord, Mapping[str, Split]]


def prepare(data: str, request: Request, cache: Path, pack_limit: int | None, download: bool) -> Prepared:
    """The splits and the record that describes them; from the pack where there is one. Raises UserError."""
    name, path = _located(data, cache, download)
    try:
        folder = _folder(name, path, request, cache)
        return _packed(folder, pack_limit) or _read(name, path, request, folder, pack_limit)
    except OSError as error:
        raise UserError(f"{error.filename or cache}: {error.strerror}; make room or give --cache DIR") from None


def counted(data: str, request: Request, cache: Path) -> dict[str, int]:
    """How many images each split will have; of files by listing them: none is decoded, nothing is downloaded.

    Raises UserError where that needs files that are not there.
    """
    name, path = _located(data, cache, allowed=False)
    folder = _folder(name, path, request, cache)
    record = pack.find(folder)
    if record is not None:
        return {name: split.count for name, split in record.splits.items()}
    if path is None:
        return {name: len(split) for name, split in prepare(data, request, cache, None, download=False)[1].items()}
    with contextlib.ExitStack() as files:
        raw, _ = _loaded(path, request, folder, files)
        return {name: len(images.labels) for name, images in _complete(raw, request.seed).items()}


def _folder(name: str, path: Path | None, request: Request, cache: Path) -> Path:
    """Where the pack of these images is, or would be."""
    label = name or re.sub(r"[^A-Za-z0-9_-]+", "-", path.name.partition(".")[0] if path else "")
    return cache / PACKS / f"{label}-{_key(name, path, request)}"


def _located(data: str, cache: Path, allowed: bool) -> tuple[str, Path | None]:
    """The source that `data` names, empty for the user's own files, and where its files lie, if it has any."""
    name = data.partition(":")[0]
    if name not in sources.names():
        return "", _existing(data)
    return name, None if sources.get(name).make is not None else _downloaded(data, cache, allowed)


def _existing(data: str) -> Path:
    path = Path(data).expanduser().resolve()
    if not path.exists():
        raise UserError(f"{data}: neither a path nor a data source; give a folder, an archive or one of "
                        f"{', '.join(sources.names())}")  # fmt: skip
    return path


def _downloaded(data: str, cache: Path, allowed: bool) -> Path:
    """The source's official file, or the folder of its files, downloaded if need be."""
    name, colon, _ = data.partition(":")
    downloads = sources.get(name).downloads
    if colon or not downloads:
        raise UserError(f"--data {data} names no files; give --data PATH with the path of your {name} data")
    return fetch_all(name, downloads, cache / DOWNLOADS / name, allowed)


def _key(name: str, path: Path | None, request: Request) -> str:
    """What a pack's contents depend on, as 16 hexadecimal digits."""
    parts = [pack.FORMAT, name, path and fingerprint(path), request.shape, request.seed]
    if path is None:
        argument = sources.get(name).argument
        parts.append(argument(request) if argument else request.argument)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _packed(folder: Path, pack_limit: int | None) -> Prepared | None:
    """The finished pack in `folder`, if there is one, it is whole, and the limit allows it."""
    record = pack.find(folder)
    if record is None or (pack_limit is not None and record.bytes > pack_limit):
        return None
    try:
        return record, pack.open_splits(folder, record)
    except pack.Damaged as error:
        print(f"note: {error}; packing again", file=sys.stderr)
        return None


def _read(name: str, path: Path | None, request: Request, folder: Path, pack_limit: int | None) -> Prepared:
    """Read the source and pack it, or stream it where it is larger than the limit."""
    with contextlib.ExitStack() as files:
        raw, record = _made(name, request) if path is None else _loaded(path, request, folder, files)
        splits = {name: recolour(images, request.shape[0]) for name, images in _complete(raw, request.seed).items()}
        size = sum(len(images.labels) * math.prod(images.shape) for images in splits.values())
        if size > (min(PACK_LIMIT, _free(folder) // 2) if pack_limit is None else pack_limit):
            files.pop_all()  # they stay open for as long as the streams read from them
            return record, {name: Streamed.of(name, images) for name, images in splits.items()}
        record = pack.write(folder, splits, record)
    return record, pack.open_splits(folder, record)


def _made(name: str, request: Request) -> tuple[Raw, PackRecord]:
    make = sources.get(name).make
    assert make is not None
    raw = make(request)
    return raw, PackRecord(source=name, origin=None, classes=raw.classes)


def _loaded(path: Path, request: Request, folder: Path, files: contextlib.ExitStack) -> tuple[Raw, PackRecord]:
    tree = open_tree(path, folder.parent)
    files.callback(tree.close)
    name, source = _recognised(tree)
    assert source.load is not None
    raw = source.load(tree, request)
    notes = differences(name, tree, source.downloads)
    return raw, PackRecord(source=name, origin=str(path), classes=raw.classes, notes=notes)


def _recognised(tree: Tree) -> tuple[str, Source]:
    """The one source whose layout this is. Raises UserError saying what was expected."""
    readers = {name: source for name in sources.names() if (source := sources.get(name)).recognises is not None}
    found = [name for name, source in readers.items() if source.recognises is not None and source.recognises(tree)]
    if len(found) > 1:
        raise UserError(f"{tree.path}: holds more than one data set ({', '.join(found)}); give the path of one of them")
    if not found:
        expected = ", ".join(f"{source.expected} ({name})" for name, source in readers.items())
        raise UserError(f"{tree.path}: no known layout; expected {expected}; give the path of one of these")
    return found[0], readers[found[0]]


def _complete(raw: Raw, seed: int) -> dict[str, Images]:
    """Train, val and test; a missing one is cut from train, the same way for the same seed."""
    splits = dict(raw.splits)
    for stream, name in enumerate(("test", "val")):
        if name not in splits:
            splits["train"], splits[name] = cut(splits["train"], SHARE, seed, stream)
    return {name: splits[name] for name in SPLITS}


def _free(folder: Path) -> int:
    """Free bytes on the disk that will hold `folder`."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free

"""python -m trainers.cache: list and clear what this program keeps in its cache: packed and downloaded images."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from trainers import cli
from trainers.dataset import DOWNLOADS, PACKS, SPLITS, cache_folder
from trainers.manifest import UserError

EPILOG = """\
examples:
  python -m trainers.cache                       list what is there
  python -m trainers.cache clear                 delete all of it
  python -m trainers.cache clear mnist-10k-1a2b  delete one entry (the start of its name is enough)

Everything here can be made again: a pack from its source, a download from its publisher.
"""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A folder of the cache. `splits` is empty for downloads and for packs that were never finished."""

    name: str
    kind: str
    source: str
    splits: dict[str, int]
    bytes: int
    age_seconds: float
    path: str


def entries(cache: Path) -> list[Entry]:
    """What the cache holds, oldest first."""
    found = [_entry(folder, kind) for kind in (PACKS, DOWNLOADS) for folder in _folders(cache / kind)]
    return sorted(found, key=lambda entry: -entry.age_seconds)


def clear(entry: Entry) -> None:
    """Delete the files that this program wrote, the record first; a folder goes once it is empty."""
    folder = Path(entry.path)
    for file in sorted(_files(folder, entry.kind), key=lambda file: file.suffix != ".json"):
        file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something of the user's lies there
        folder.rmdir()


def _folders(parent: Path) -> Iterator[Path]:
    if parent.is_dir():
        yield from (folder for folder in sorted(parent.iterdir()) if folder.is_dir() and not folder.is_symlink())


def _files(folder: Path, kind: str) -> list[Path]:
    """The files in a cache folder whose names are ours, unfinished ones included."""
    from trainers import data, pack

    if kind == PACKS:
        known = {pack.RECORD, *(f"{split}{end}" for split in SPLITS for end in (".npy", ".labels.npy"))}
    else:
        names = [item.name for source in data.names() for item in data.get(source).downloads]
        known = {f"{name}{end}" for name in names for end in ("", ".part")}
    return [file for file in folder.iterdir() if file.is_file() and (file.name in known or _temporary(file, known))]


def _temporary(file: Path, known: set[str]) -> bool:
    """Whether it is what an atomic write that was killed leaves: .<name>.<random><suffix>."""
    return any(file.name.startswith(f".{name}.") for name in known)


def _entry(folder: Path, kind: str) -> Entry:
    from trainers import pack

    source, splits = folder.name, {}
    if kind == PACKS:
        source = "unfinished"
        with contextlib.suppress(UserError):
            record = pack.PackRecord.load(folder / pack.RECORD)
            source, splits = record.source, {name: split.count for name, split in record.splits.items()}
    files = [file.stat() for file in _files(folder, kind)]
    newest = max((file.st_mtime for file in files), default=folder.stat().st_mtime)
    return Entry(
        name=folder.name, kind=kind, source=source, splits=splits, bytes=sum(file.st_size for file in files),
        age_seconds=round(max(time.time() - newest, 0.0), 1), path=str(folder),
    )  # fmt: skip


def _chosen(found: list[Entry], name: str | None) -> list[Entry]:
    """The entries that `name` means: all without one, else those it begins. Raises UserError when there are none."""
    if name is None:
        return found
    chosen = [entry for entry in found if entry.name == name] or [e for e in found if e.name.startswith(name)]
    if not chosen:
        cli.choose(name, [entry.name for entry in found] or ["nothing: the cache is empty"], "cache entry")
    return chosen


def _show(found: list[Entry], cache: Path) -> None:
    rows = [
        (
            entry.name, entry.source, " ".join(f"{name}={count:,}" for name, count in entry.splits.items()) or "-",
            cli.megabytes(entry.bytes), _age(entry.age_seconds), entry.path,
        )
        for entry in found
    ]  # fmt: skip
    total = cli.megabytes(sum(entry.bytes for entry in found))
    cli.table(f"{cache}: {total}", ["name", "source", "splits", ">size", ">age", "path"], rows)


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = cli.Parser(prog="python -m trainers.cache", description=__doc__, epilog=EPILOG)
    parser.add_argument("verb", nargs="?", choices=("list", "clear"), default="list", help="what to do (default: list)")
    parser.add_argument("name", nargs="?", help="only this entry, or those whose names begin so")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="the cache folder (default: the user's)")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    options = parser.parse_args(arguments)
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    cache = options.cache or cache_folder()
    chosen = _chosen(entries(cache), options.name)
    if options.verb == "clear":
        for entry in chosen:
            clear(entry)
    if options.json:
        key = "cleared" if options.verb == "clear" else "entries"
        cli.emit({"cache": str(cache), key: [asdict(entry) for entry in chosen]})
    elif options.verb == "clear":
        size = cli.megabytes(sum(entry.bytes for entry in chosen))
        print(f"cleared {len(chosen)} entries, {size}, from {cache}", file=sys.stderr)
    else:
        _show(chosen, cache)
    return cli.OK


if __name__ == "__main__":
    cli.run(main)

"""Tree: the files of a folder or an archive, listed and read in place, never extracted."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import lzma
import os
import posixpath
import shutil
import stat
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from trainers.manifest import UserError

# A compressed tar is told by its first bytes.
OPENERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ": lzma.open}
BLOCK = 512  # bytes of a tar's unit
# NotImplementedError is how zipfile refuses a compression method that it does not know.
BROKEN = (OSError, EOFError, lzma.LZMAError, zlib.error, zipfile.BadZipFile, tarfile.TarError, NotImplementedError)


class Tree(Protocol):
    """Regular files by their relative POSIX names. `read` may be called from several threads."""

    @property
    def path(self) -> Path:
        """The folder or archive."""

    @property
    def files(self) -> Mapping[str, int]:
        """Names, in the order in which they are read fastest, and sizes in bytes."""

    def read(self, name: str) -> bytes:
        """A file's contents. Raises OSError or another of BROKEN."""

    def close(self) -> None:
        """Let go of the archive; nothing can be read afterwards."""


def open_tree(path: Path, scratch: Path) -> Tree:
    """Open a folder, zip or tar. A compressed tar is inflated into an unnamed file in `scratch`.

    Raises UserError on another file, a broken archive, or one with a member that is a link or lies outside.
    """
    if path.is_dir():
        return Folder(path)
    try:
        with path.open("rb") as file:
            start = file.read(512)
        if zipfile.is_zipfile(path):
            return Zip(path)
        opener = next((opener for magic, opener in OPENERS.items() if start.startswith(magic)), None)
        if opener is not None or tarfile.is_tarfile(path):
            return Tar(path, _inflated(path, opener, scratch) if opener else path.open("rb"))
    except BROKEN as error:
        raise UserError(f"{path}: cannot be read as an archive ({error}); get it again") from None
    raise UserError(f"{path}: neither a folder nor a zip, tar, tar.gz or tar.xz archive; give one of these")


def fingerprint(path: Path) -> str:
    """What changes when the contents do: a file's size and time, or the listing of a folder with those."""
    if path.is_file():
        found = path.stat()
        return f"{path}:{found.st_size}:{found.st_mtime_ns}"
    digest = hashlib.sha256()
    for name, found in sorted(_walk(path)):
        digest.update(f"{name}:{found.st_size}:{found.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return f"{path}:{digest.hexdigest()}"


def by_name(tree: Tree, *folders: str) -> dict[str, str]:
    """Paths by file name, of the files that lie at the tree's top or in one of `folders` (`"MNIST/raw"`).

    Folders around everything are looked past, but not siblings: a folder of several data sets is none of them.
    """
    parents = {name: PurePosixPath(name).parent.parts for name in tree.files}
    around = PurePosixPath(posixpath.commonpath(["/".join(parent) for parent in parents.values()] or [""])).parts
    ends = [(), *(PurePosixPath(folder).parts for folder in folders)]

    def fits(parent: tuple[str, ...], end: tuple[str, ...]) -> bool:
        cut = len(parent) - len(end)
        return cut >= 0 and parent[cut:] == end and parent[:cut] == around[:cut]

    return {PurePosixPath(name).name: name for name, parent in parents.items() if any(fits(parent, e) for e in ends)}


class Folder:
    """A folder and all below it; hidden files are left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = {name: found.st_size for name, found in sorted(_walk(path))}

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def close(self) -> None:
        pass


class Zip:
    """A zip archive, read member by member."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive = zipfile.ZipFile(path)
        with contextlib.ExitStack() as on_error:
            on_error.callback(self.close)
            self.files = {member.filename: member.file_size for member in self._members()}
            on_error.pop_all()

    def read(self, name: str) -> bytes:
        return self._archive.read(name)

    def close(self) -> None:
        self._archive.close()

    def _members(self) -> Iterator[zipfile.ZipInfo]:
        for member in self._archive.infolist():
            if member.is_dir():
                continue
            mode = stat.S_IFMT(member.external_attr >> 16)
            _check(self.path, member.filename, plain=mode in (0, stat.S_IFREG))
            if member.flag_bits & 1:
                raise UserError(f"{self.path}: {member.filename} is encrypted; give an archive without a password")
            yield member


class Tar:
    """An uncompressed tar, read at each member's offset."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self._file = file
        self._lock = threading.Lock()
        with contextlib.ExitStack() as on_error:
            on_error.callback(self.close)
            members = {member.name.removeprefix("./"): member for member in self._members()}
            on_error.pop_all()
        self._offsets = {name: member.offset_data for name, member in members.items()}
        self.files = {name: member.size for name, member in members.items()}

    def read(self, name: str) -> bytes:
        with self._lock:
            self._file.seek(self._offsets[name])
            return self._file.read(self.files[name])

    def close(self) -> None:
        self._file.close()

    def __del__(self) -> None:
        self.close()

    def _members(self) -> Iterator[tarfile.TarInfo]:
        # A tar ends with blocks of zeros; tarfile takes one that was cut off for a whole one.
        self._file.seek(-min(BLOCK, self._file.seek(0, os.SEEK_END)), os.SEEK_END)
        if self._file.read().strip(b"\0"):
            raise EOFError("it ends early")
        self._file.seek(0)
        with tarfile.open(fileobj=self._file, mode="r:") as archive:
            for member in archive:
                if not member.isdir():
                    _check(self.path, member.name, plain=member.isreg() and not member.issparse())
                    yield member


def _check(path: Path, name: str, *, plain: bool) -> None:
    """Refuse a member that is a link or device, or whose resolved name leaves the archive's folder."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if not plain or parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0]:
        what = "points outside the archive" if plain else "is a link or no plain file"
        raise UserError(f"{path}: member {name!r} {what}; get the archive from a source you trust")


def _inflated(path: Path, opener: Callable[..., Any], scratch: Path) -> IO[bytes]:
    """The tar inside a compressed one, in a file that vanishes when it is closed: random access needs it."""
    from trainers.cli import progress

    scratch.mkdir(parents=True, exist_ok=True)
    room = shutil.disk_usage(scratch).free // 2
    target = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 (it lives as long as the Tar)
    try:
        with path.open("rb") as packed, progress() as bars:
            task = bars.add_task(f"reading {path.name}", total=path.stat().st_size)
            with opener(packed) as source:
                while block := source.read(1 << 22):
                    target.write(block)
                    bars.update(task, completed=packed.tell())
                    if target.tell() > room:
                        raise UserError(f"{path}: takes more than half the free disk when inflated; "
                                        "free some, or give --cache DIR on a larger one")  # fmt: skip
    except BaseException:
        target.close()
        raise
    target.seek(0)
    return target


def _walk(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every visible file below `root`: its relative name and its stat. Links to folders are followed once."""
    seen: set[tuple[int, int]] = set()
    waiting = [("", root)]
    while waiting:
        prefix, folder = waiting.pop()
        try:
            found = folder.stat()
            entries = list(os.scandir(folder))
        except OSError as error:
            raise UserError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from None
        if (found.st_dev, found.st_ino) in seen:
            continue
        seen.add((found.st_dev, found.st_ino))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                waiting.append((f"{prefix}{entry.name}/", Path(entry.path)))
            elif entry.is_file():
                yield f"{prefix}{entry.name}", entry.stat()

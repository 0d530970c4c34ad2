"""Download: an official file, fetched once: mirrors, progress, resume by Range, published MD5, atomic rename."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.manifest import UserError

if TYPE_CHECKING:
    from trainers.tree import Tree

TIMEOUT = 30.0  # seconds without a byte before a mirror counts as dead
ATTEMPTS = 3  # connections a mirror gets, each continuing where the last one broke


@dataclass(frozen=True, kw_only=True)
class Download:
    """A file as its publisher describes it. `urls` are mirrors of the same bytes."""

    name: str
    urls: tuple[str, ...]
    bytes: int
    md5: str


def fetch_all(source: str, downloads: Sequence[Download], folder: Path, allowed: bool = True) -> Path:
    """Every file of a source in `folder`; returns the file where there is one, else the folder.

    Raises UserError when a file is missing and downloading is not allowed or fails; a file that is there is whole.
    """
    for download in downloads:
        path = folder / download.name
        if _is_there(path, download):
            continue
        if not allowed:
            raise UserError(
                f"{source} has not been downloaded to {folder}; download it by training, or give --data PATH"
            )
        with _alone(folder):
            if not _is_there(path, download):  # another process may have been faster
                fetch(download, path)
    return folder / downloads[0].name if len(downloads) == 1 else folder


def _is_there(path: Path, download: Download) -> bool:
    return path.is_file() and path.stat().st_size == download.bytes


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process of this machine downloads there: two that append to one part spoil it."""
    folder.mkdir(parents=True, exist_ok=True)
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def fetch(download: Download, path: Path) -> None:
    """Download to `path`, continuing a broken download. Raises UserError when no mirror gives the right bytes."""
    part = path.with_name(f"{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    reason = ""
    for url in download.urls:
        for _ in range(ATTEMPTS):
            try:
                _transfer(download, url, part)
            except urllib.error.HTTPError as error:
                reason = f"{url}: HTTP {error.code} {error.reason}"
                error.close()
                break  # this mirror has answered: asking again changes nothing
            except (OSError, HTTPException) as error:
                reason = f"{url}: {getattr(error, 'reason', None) or error or type(error).__name__}"
            if _finished(part, download):
                part.replace(path)
                return
            if part.is_file() and part.stat().st_size >= download.bytes:
                reason = f"{url}: MD5 {md5(part)} instead of {download.md5}"
                part.unlink()  # nothing in it can be trusted
                break
            reason = reason or f"{url}: the connection ended early"
    raise UserError(f"{download.name} could not be downloaded ({reason}); get it by hand from {download.urls[0]} "
                    "and give --data PATH")  # fmt: skip


def md5(path: Path) -> str:
    """The file's MD5, as publishers state it: against damage, not against malice."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def differences(source: str, tree: Tree, downloads: Sequence[Download]) -> tuple[str, ...]:
    """A line for each official file that a user's copy holds with another MD5, naming both."""
    if len(downloads) == 1 and tree.path.is_file():
        found = {downloads[0]: md5(tree.path)}
    else:
        names = {name.rpartition("/")[2]: name for name in tree.files}
        found = {
            download: hashlib.md5(tree.read(names[download.name]), usedforsecurity=False).hexdigest()
            for download in downloads
            if len(downloads) > 1 and download.name in names
        }
    return tuple(
        f"{tree.path}: MD5 {actual} is not that of the official {source} file {download.name}, {download.md5}; "
        "results are not comparable with those on the official data"
        for download, actual in found.items()
        if actual != download.md5
    )


def _finished(part: Path, download: Download) -> bool:
    return part.is_file() and part.stat().st_size == download.bytes and md5(part) == download.md5


def _transfer(download: Download, url: str, part: Path) -> None:
    """Append what is missing of `part`; returns at the end of the response, complete or not."""
    from trainers.cli import progress

    have = part.stat().st_size if part.is_file() else 0
    if have >= download.bytes:
        return
    headers = {"User-Agent": "fastform", "Range": f"bytes={have}-"}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 (our own table of http and https addresses)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:  # noqa: S310
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        have = have if resumed else 0
        with part.open("ab" if resumed else "wb") as file, progress() as bars:
            task = bars.add_task(f"downloading {download.name}", total=download.bytes, completed=have)
            while have < download.bytes and (block := response.read(min(1 << 18, download.bytes - have))):
                file.write(block)
                have += len(block)
                bars.update(task, completed=have)

"""Are the files on disk those that their records describe? Hashing needs neither torch nor onnx."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec

from export.artifact import FAILED, Artifact, Parent
from trainers.checkpoint import NAME, Checkpoint
from trainers.manifest import File, UserError, sha256

Status = Literal["ok", "changed", "missing", "unreadable", "no record", "stale"]
DAMAGED: tuple[Status, ...] = ("changed", "missing", "unreadable")
SUFFIXES = (".onnx", ".safetensors", ".xml")  # files that ought to have a record
CACHES = ("logits",)  # named by what they were made from, and made again when they are gone
SCRATCH, DAY = ".export-*", 86400.0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What is known of one file. `detail` says what was expected and what was found."""

    path: Path
    status: Status
    detail: str = ""


@dataclass(frozen=True)
class Voucher:
    """A record on disk and the files it describes, its own first. `broken` says why it cannot be read."""

    path: Path
    files: tuple[File, ...] = ()
    artifact: Artifact | None = None
    broken: str = ""

    @property
    def home(self) -> Path:
        """The model's folder: parents and reference lie there also for a failed artifact."""
        folder = self.path.parent
        return folder.parent if folder.name == FAILED else folder


@dataclass
class Verifier:
    """Checks vouchers; a file that several of them describe is hashed once."""

    hashes: dict[tuple[int, int], str] = field(default_factory=dict)

    def findings(self, voucher: Voucher) -> Iterator[Finding]:
        """The state of each file that a record describes."""
        if voucher.broken:
            yield Finding(path=voucher.path, status="unreadable", detail=voucher.broken)
            return
        artifact = voucher.artifact
        stale = (
            next(filter(None, (_outdated(voucher.home, parent) for parent in artifact.parents)), "") if artifact else ""
        )
        for number, file in enumerate(voucher.files):
            finding = self.compare(voucher.path.parent, file)
            if artifact and not number and finding.status == "ok":
                finding = self._with_origin(finding, artifact, stale)
            yield finding
        if artifact:
            finding = self.compare(voucher.home, artifact.reference)
            # The answers of another checkpoint took this one's place.
            yield (
                finding
                if not stale or finding.status == "ok"
                else Finding(
                    path=finding.path, status="stale", detail=f"not what {voucher.path.name} was made with; {stale}"
                )
            )

    def compare(self, folder: Path, file: File) -> Finding:
        """One file with its description."""
        path = folder / file.path
        if not path.resolve().is_relative_to(folder.resolve()):
            return Finding(path=path, status="changed", detail="the record names a file outside its folder")
        if not path.is_file():
            return Finding(path=path, status="missing", detail=f"{file.bytes} bytes, sha256 {file.sha256[:12]}…")
        size = path.stat().st_size
        if size != file.bytes:
            return Finding(path=path, status="changed", detail=f"{size} bytes, recorded {file.bytes}")
        found = self.hash(path)
        if found != file.sha256:
            return Finding(path=path, status="changed", detail=f"sha256 {found[:12]}…, recorded {file.sha256[:12]}…")
        return Finding(path=path, status="ok")

    def hash(self, path: Path) -> str:
        """The file's sha256; two names of one file are read once."""
        status = path.stat()
        key = status.st_dev, status.st_ino
        if key not in self.hashes:
            self.hashes[key] = sha256(path)
        return self.hashes[key]

    def _with_origin(self, finding: Finding, artifact: Artifact, stale: str) -> Finding:
        """An intact file: does it name the checkpoint that its record names, and is that still the current one?"""
        origin = next((one.sha256 for one in artifact.parents if one.role in ("checkpoint", "source")), None)
        named = _named_checkpoint(finding.path) if artifact.kind == "onnx" else None
        if named is not None and named != origin:
            detail = f"made from checkpoint {named[:12]}… by its metadata, from {str(origin)[:12]}… by its record"
            return Finding(path=finding.path, status="changed", detail=detail)
        return Finding(path=finding.path, status="stale", detail=stale) if stale else finding


@dataclass(frozen=True)
class Scope:
    """What is checked: everything under `folders`, and single `records`."""

    folders: tuple[Path, ...] = ()
    records: tuple[Path, ...] = ()

    @cached_property
    def vouchers(self) -> list[Voucher]:
        """The records, by path."""
        inside = (path for folder in self.folders for path in folder.rglob("*.json") if not _is_hidden(path, folder))
        read = (voucher(path) for path in sorted({*inside, *self.records}))
        return [made for made in read if made is not None]

    def unrecorded(self, known: Iterable[Path]) -> list[Finding]:
        """Model files that no record describes."""
        vouched = set(known)
        paths = {
            path for folder in self.folders for path in folder.rglob("*")
            if path.suffix in SUFFIXES and path.is_file() and not _is_hidden(path, folder)
            and path.parent.name not in CACHES and path not in vouched
        }  # fmt: skip
        return [Finding(path=path, status="no record", detail="nothing to compare it with") for path in sorted(paths)]

    def leftovers(self) -> list[Path]:
        """Folders that exports left when they were killed, at least a day ago."""
        found = (path for folder in self.folders for path in folder.rglob(SCRATCH) if path.is_dir())
        return sorted(path for path in found if time.time() - path.stat().st_mtime > DAY)


def scope(paths: Sequence[Path]) -> Scope:
    """What the paths of a command line stand for: folders, records, or files that a record describes.

    Raises UserError on a path that does not exist, or a file that no record beside it describes.
    """
    folders, records = [], []
    for path in paths:
        if path.is_dir():
            folders.append(path)
        elif path.suffix == ".json" and path.is_file():
            records.append(path)
        else:
            records.append(_record_of(path))
    return Scope(tuple(folders), tuple(records))


def voucher(path: Path) -> Voucher | None:
    """Read a record for the files it describes; None for a JSON document that is no record of ours."""
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return Voucher(path, broken="not a complete JSON document")
    if not isinstance(document, dict) or "schema" not in document:
        return None
    try:
        if {"variant", "parity"} <= document.keys():
            artifact = Artifact.load(path)
            return Voucher(path, artifact.files, artifact)
        if path.name.startswith(NAME):
            return Voucher(path, Checkpoint.load(path).files)
        return Voucher(path, _files(document))
    except (UserError, msgspec.ValidationError) as error:
        return Voucher(path, broken=str(error).removeprefix(f"{path}: "))


def _files(document: dict[str, Any]) -> tuple[File, ...]:
    return msgspec.convert(document.get("files", ()), tuple[File, ...])


def _record_of(path: Path) -> Path:
    """The record that describes a file: the one beside it, or another of its folder that names it."""
    beside = path.with_suffix(".json")
    if beside.is_file():
        return beside
    records = (made for record in sorted(path.parent.glob("*.json")) if (made := voucher(record)) is not None)
    for made in records:
        if path.name in [file.path for file in (*made.files, *((made.artifact.reference,) if made.artifact else ()))]:
            return made.path
    if not path.exists():
        raise UserError(f"{path}: no such file or folder, and no record of it; check the path")
    raise UserError(f"{path} has no record, so there is nothing to compare it with; check the folder it was made in")


def _outdated(home: Path, parent: Parent) -> str:
    """Why something made from this parent is stale; empty when the parent is what it was.

    The parent's own record is asked first: a damaged parent is reported as such, and makes nothing stale. A file of the
    user's lies where the user likes.
    """
    if parent.role == "source":
        return ""
    path = home / parent.path
    made = voucher(record) if (record := path.with_suffix(".json")).is_file() else None
    recorded = next((file.sha256 for file in made.files if file.path == parent.path), None) if made else None
    if recorded == parent.sha256 or (recorded is None and path.is_file() and sha256(path) == parent.sha256):
        return ""
    if recorded is None and not path.is_file():
        return f"{parent.path}, which it was made from, is gone"
    kept = path.with_stem(f"{path.stem}-{parent.sha256[:8]}")
    where = f" (it is kept as {kept.name})" if kept.is_file() else ""
    return f"{parent.path} is no longer the one it was made from{where}"


def _named_checkpoint(path: Path) -> str | None:
    """The checkpoint's sha256 in an ONNX file's metadata."""
    import onnx

    metadata = onnx.load(path, load_external_data=False).metadata_props
    return next((entry.value for entry in metadata if entry.key == "checkpoint_sha256"), None)


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)

"""The floor: records on disk, the files they vouch for, and the errors a user can mend.

A stage leaves files and one JSON record. The record is written last and by rename, so a record that exists is
complete, and it holds the sha256 of every file it names. No framework is imported here: a process that only reads
records starts in milliseconds.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import msgspec

R = TypeVar("R", bound="Record")

PROGRAM = "fastform"
PACKAGES = (
    PROGRAM,
    "torch",
    "torchvision",
    "numpy",
    "onnx",
    "onnxscript",
    "onnx-ir",
    "onnxruntime-gpu",
    "onnxruntime",
    "tensorrt-cu13",
    "tensorrt-rtx-cu13",
    "openvino",
    "nncf",
    "torchao",
    "timm",
)


class UserError(Exception):
    """Something the user can mend. The message is one line and ends with what to do next; the exit status is 2."""


class CheckFailed(Exception):
    """The work ran and its result did not pass. The message is one line; the exit status is 1."""


class Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen value inside a record."""


class File(Struct, frozen=True, kw_only=True):
    """A file that a record vouches for; `path` is relative to the record's folder."""

    path: str
    sha256: str
    bytes: int

    @classmethod
    def of(cls, path: Path) -> File:
        """Describe a file that lies beside its record. Raises OSError when it cannot be read."""
        return cls(path=path.name, sha256=sha256(path), bytes=path.stat().st_size)

    def verify(self, folder: Path) -> Path:
        """Return the file's full path once size and hash agree; raises UserError when they do not."""
        path = folder / self.path
        if path.resolve().parent != folder.resolve():
            raise UserError(f"{folder}: the record names {self.path!r}, which is outside its folder; make it again")
        if not path.is_file():
            raise UserError(f"{path} is missing though its record names it; make it again")
        if path.stat().st_size != self.bytes or sha256(path) != self.sha256:
            raise UserError(f"{path} is not the file its record describes (sha256 differs); make it again")
        return path


class Environment(Struct, frozen=True, kw_only=True):
    """Where a result was made."""

    time: str
    host: str
    platform: str
    python: str
    packages: dict[str, str]
    cpu: str
    cores: int
    threads: int
    memory_bytes: int
    gpu: str | None = None
    revision: str | None = None


class Record(Struct, frozen=True, kw_only=True):
    """A frozen document on disk. Subclasses set SCHEMA and, when it rises, teach `upgrade` the older shapes."""

    SCHEMA: ClassVar[int] = 1

    @classmethod
    def upgrade(cls, document: dict[str, Any], schema: int) -> dict[str, Any]:
        """Turn a document of an older schema into today's shape."""
        return document

    def save(self, path: Path) -> None:
        """Write the record as JSON, atomically. Raises OSError; the old record then still stands."""
        document = {"schema": self.SCHEMA, **msgspec.to_builtins(self)}
        write_atomic(path, (json.dumps(document, indent=2) + "\n").encode())

    def to_document(self) -> dict[str, Any]:
        """The record as plain JSON values, with its schema."""
        return {"schema": self.SCHEMA, **msgspec.to_builtins(self)}

    @classmethod
    def load(cls: type[R], path: Path) -> R:
        """Read a record strictly. Raises UserError in one line for every way in which it can be wrong."""
        noun = cls.__name__.lower()
        try:
            document = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise UserError(f"{path}: no such {noun} record; make it first") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
        except (ValueError, RecursionError):
            raise UserError(f"{path}: not a complete JSON document (truncated?); make the {noun} again") from None
        schema = document.pop("schema", None) if isinstance(document, dict) else None
        if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
            raise UserError(f"{path}: not a {noun} record (it has no schema number); give another file")
        if schema > cls.SCHEMA:
            raise UserError(
                f"{path}: written by a newer version (schema {schema}, this one reads up to "
                f"{cls.SCHEMA}); upgrade this program"
            )
        try:
            return msgspec.convert(cls.upgrade(document, schema), cls, strict=True)
        except msgspec.ValidationError as error:
            raise UserError(f"{path}: not a valid {noun} record: {error}; make the {noun} again") from None
        except (KeyError, TypeError, AttributeError):  # an older shape that `upgrade` looks into, and that is none
            raise UserError(f"{path}: not a valid {noun} record of schema {schema}; make the {noun} again") from None

    @classmethod
    def find(cls: type[R], path: Path) -> R | None:
        """The record, or None where there is none or it cannot be trusted: its maker then makes it again."""
        try:
            return cls.load(path) if path.is_file() else None
        except UserError:
            return None


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on a clean exit it is flushed to disk and renamed over `path`.

    On any error, Ctrl-C included, the temporary file goes and the old file stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes private files; artifacts are ordinary ones
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # a folder cannot be flushed on every file system
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_atomic(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, or leave it as it was."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def link_or_copy(source: Path, target: Path) -> None:
    """Give `source` a second name, sharing its bytes where the file system can."""
    with atomic(target) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def sha256(path: Path) -> str:
    """The file's sha256 in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def probe(folder: Path) -> None:
    """Raise OSError where nothing can be written to a folder: before the work whose result goes there."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(1 << 16))


def invocation() -> str:
    """The command that started this process, for its records."""
    return shlex.join(["python", *sys.orig_argv[1:]])


def environment() -> Environment:
    """Describe this machine and the packages installed, without importing them."""
    return Environment(
        time=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        host=platform.node(),
        platform=platform.platform(),
        python=platform.python_version(),
        packages=_versions(),
        cpu=cpu(),
        cores=os.cpu_count() or 1,
        threads=usable_threads(),
        memory_bytes=_memory(),
        gpu=gpu(),
        revision=_revision(),
    )


def usable_threads() -> int:
    """Cores this process may use (its affinity mask, not the machine's total)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpu() -> str | None:
    """Name, memory and driver of the NVIDIA GPUs, or None."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    lines = output_of(query)
    return "; ".join(lines.splitlines()) if lines else None


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def cpu() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0


def _revision() -> str | None:
    """The git revision of this source tree, marked when it has local changes."""
    here = str(Path(__file__).parent)
    return output_of(["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=12"]) or None


def output_of(command: list[str]) -> str:
    """What a program prints, or nothing where it is not there or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""

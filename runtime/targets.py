"""What the command line names: models under the artifacts folder, or files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from export.artifact import Found, find, open_file
from runtime.check import home
from runtime.results import Subject
from trainers.checkpoint import folder_name
from trainers.manifest import UserError, sha256
from trainers.process import Worker, WorkerError

READ_S = 60.0  # reading a foreign file takes longer only when it means harm


@dataclass(frozen=True)
class Target:
    """An artifact to measure. `input_shape` has None where a dimension, the batch, is free."""

    found: Found
    subject: Subject
    input_shape: tuple[int | None, ...]

    def refuses(self, batch: int) -> str | None:
        """Why it cannot run at this batch size."""
        fixed = self.input_shape[0]
        return f"the file's batch size is fixed at {fixed}" if fixed not in (None, batch) else None


def resolve(names: Sequence[str], folder: Path, memory_bytes: int | None) -> tuple[list[Target], list[str]]:
    """The artifacts that `names` stand for, and the names of stale ones left out.

    A name is a model's folder under `folder`, or the path of such a folder or of a model file. Raises UserError when
    one is neither, or a file is not a readable model.
    """
    targets: dict[Path, Target] = {}
    stale: list[str] = []
    for name in names:
        for found in _found(name, folder):
            if found.stale and not _is_file(name, folder):
                stale.append(found.name)
            else:
                targets.setdefault(found.path.resolve(), _target(found, memory_bytes))
    if not targets:
        raise UserError(f"nothing to measure: the artifacts of {', '.join(names)} come from an older checkpoint; "
                        f"make them again with: python -m export {names[0]}")  # fmt: skip
    return _distinct(list(targets.values())), stale


def models(folder: Path) -> list[str]:
    """The models with artifacts under `folder`."""
    others = ("reports", "roofline")
    return sorted({path.parent.name for path in folder.glob("*/*.json") if path.parent.name not in others})


def model_folder(name: str, folder: Path) -> Path | None:
    """The folder of the model called `name`, or at the path `name`."""
    own = folder_name(name) if ":" in name else name  # an external model's folder has a safe name
    return next((path for path in (folder / own, Path(name)) if path.is_dir()), None)


def _is_file(name: str, folder: Path) -> bool:
    return model_folder(name, folder) is None


def _found(name: str, folder: Path) -> Iterator[Found]:
    home = model_folder(name, folder)
    if home is not None:
        found = list(find(home))
        if not found:
            raise UserError(f"{home} holds no artifacts; make them with: python -m export {home.name}")
        yield from found
    elif Path(name).suffix in (".onnx", ".safetensors", ".xml") or Path(name).exists():
        yield open_file(Path(name))
    else:
        known = models(folder)
        there = f"there are: {', '.join(known)}" if known else f"make one with: python -m export {name}"
        raise UserError(f"no model {name!r} in {folder}; {there}")


def _target(found: Found, memory_bytes: int | None) -> Target:
    return target_of(found) if found.record is not None else _foreign(found, memory_bytes)


def target_of(found: Found) -> Target:
    """An artifact with a record as a target."""
    record = found.record
    assert record is not None, "a file without a record is read by `resolve`"
    subject = Subject(
        name=found.name, model=home(found.path).resolve().name, path=str(found.path),
        bytes=sum(file.bytes for file in record.files), sha256=record.file.sha256, variant=record.variant,
        passed=record.parity.passed, drop=record.parity.drop,
        drop_interval=record.parity.drop_interval,
    )  # fmt: skip
    return Target(found, subject, record.inputs[0].shape)


def _foreign(found: Found, memory_bytes: int | None) -> Target:
    """A file without a record is read in a process of its own first: reading alone may crash or hang."""
    path = found.path
    with contextlib.closing(Worker("runtime.worker", threads=1, memory_bytes=memory_bytes)) as worker:
        try:
            read = worker.ask("inspect", path=str(path), timeout=READ_S)
        except WorkerError as error:
            text = str(error)
            raise UserError(text if str(path) in text else f"{path}: cannot be read as an ONNX model ({text}); "
                            "give another file") from None  # fmt: skip
    subject = Subject(
        name=found.name, model=found.name, path=str(path), bytes=path.stat().st_size, sha256=sha256(path),
        variant=None, passed=False, drop=None, drop_interval=None,
    )  # fmt: skip
    return Target(found, subject, tuple(read["shape"]))


def _distinct(targets: list[Target]) -> list[Target]:
    """Files of the same name in different folders are told apart by their paths."""
    names = [target.subject.name for target in targets]
    return [
        replace(target, subject=msgspec.structs.replace(target.subject, name=target.subject.path))
        if names.count(target.subject.name) > 1
        else target
        for target in targets
    ]

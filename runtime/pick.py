"""Which one artifact a command line names."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from export.artifact import Artifact, Found, find, open_file
from export.inspect.locate import plainness
from runtime.targets import model_folder, models
from trainers.manifest import UserError


def one(name: str, artifacts: Path, kinds: Sequence[str]) -> Path:
    """The file of the artifact called `name` (or FOLDER/NAME), at the path `name`, or the plain one of a model.

    `kinds` are those that the engine loads. Raises UserError where there is none of these.
    """
    path = Path(name)
    if path.is_file():
        return path.parent / Artifact.load(path).file.path if path.suffix == ".json" else path
    folder = model_folder(name, artifacts)
    if folder is not None:
        return _plain(folder, kinds)
    if path.is_absolute():
        raise UserError(f"{path}: no such file; give the path of a model file, or an artifact's name")
    literal = glob.escape(name)
    records = sorted(artifacts.glob(f"{literal}.json" if "/" in name else f"*/{literal}.json"))
    if len(records) == 1:
        return records[0].parent / Artifact.load(records[0]).file.path
    if records:
        raise UserError(f"there are several artifacts called {name}: {', '.join(map(str, records))}; give one's path")
    known = models(artifacts)
    there = f"there are the models {', '.join(known)}" if known else "make one with: python -m export MODEL"
    raise UserError(f"no artifact, model or file {name!r} in {artifacts}; {there}")


def check(path: Path, backend: str, kinds: Sequence[str]) -> None:
    """Raise UserError where the engine does not load files of this kind."""
    found = open_file(path)
    if found.kind not in kinds:
        raise UserError(f"{backend} loads {', '.join(kinds)} and {path.name} is {found.kind}; choose another --backend")


def _plain(folder: Path, kinds: Sequence[str]) -> Path:
    """The model's fp32 file with its own activation that the engine loads, as it was exported."""
    plain = [
        (plainness(found.record), found.path)
        for found in find(folder)
        if found.record and _is_plain(found) and found.kind in kinds and not found.stale
    ]
    if not plain:
        raise UserError(f"{folder} holds no fp32 {' or '.join(kinds)} file; name a file, or make one with: "
                        f"python -m export {folder.name}")  # fmt: skip
    return max(plain)[1]


def _is_plain(found: Found) -> bool:
    assert found.record is not None
    return (found.record.variant.precision, found.record.variant.gelu) == ("fp32", "exact")

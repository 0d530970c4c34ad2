"""Artifact: a model file and its record. Nothing here needs torch, so that light workers can read and check."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from export.choice import Choice
from export.metamorphic import Metamorphic
from export.rewrites.applied import Applied
from export.variant import Variant
from trainers.checkpoint import Checkpoint
from trainers.manifest import Environment, File, Record, Struct, UserError, sha256
from trainers.spec import Option, Preprocess

SAME = "same bytes"  # `reproduced` of a file that was made twice, to the byte
BEST = "best.json"  # in the same folder: what was found fastest of them, no artifact's record
OTHERS = re.compile(r"checkpoint(-[0-9a-f]{8})?\.json|state-\d{8}\.json|best\.json")  # records that are no artifact's
FAILED = "failed"  # the folder for files beyond their tolerance: no stage looks there by itself


class Tensor(Struct, frozen=True, kw_only=True):
    """A graph input or output; `None` is a dimension that is free."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


class Parent(Struct, frozen=True, kw_only=True):
    """What an artifact was made from."""

    role: Literal["checkpoint", "source", "fp32", "rewritten", "plain"]  # source: an ONNX file of the user's
    path: str
    sha256: str


class Parity(Struct, frozen=True, kw_only=True):
    """How close an artifact is to PyTorch on the same images.

    Errors, cosine and agreement are against the PyTorch module with the same activation. `drop` is in percentage
    points of top-1 against the checkpoint itself, `own_drop` against the module with the same activation; each has
    its paired 95% interval.
    """

    split: str
    images: int
    verified_on: str  # digest of these images and their preparation
    batches: tuple[int, ...]  # the batch sizes the file was run at
    max_abs_err: float
    logit_scale: float  # standard deviation of PyTorch's logits: what an absolute error is to be seen against
    cosine: float
    top1_agreement: float
    accuracy: float | None  # this and the six below: None where the images have no labels of the model's classes
    checkpoint_accuracy: float | None
    drop: float | None
    drop_interval: tuple[float, float] | None
    own_drop: float | None
    own_drop_interval: tuple[float, float] | None
    p_value: float | None  # McNemar's exact test of the drop: how likely such a difference is by chance alone
    engine: str  # what ran the file, with its version
    passed: bool
    reason: str  # why it failed; empty when it passed


class Artifact(Record, frozen=True, kw_only=True):
    """One file that an engine can load, and where it came from."""

    SCHEMA: ClassVar[int] = 2

    kind: Literal["torch", "onnx", "openvino"]
    model: str
    options: dict[str, Option]  # the model's own settings, which its module is built with
    variant: Variant
    files: tuple[File, ...]  # the one that engines load comes first; OpenVINO's has a second with the weights
    preprocess: Preprocess
    classes: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    parents: tuple[Parent, ...]
    reference: File
    parity: Parity
    rewrites: tuple[Applied, ...]  # what the variant's rewrites matched
    requested: dict[str, str]  # the precision asked for, by operator
    attested: dict[str, dict[str, int]]  # weight types counted by operator, read back from the file
    seconds: float
    peak_memory_bytes: int  # of the process that made it
    command: str
    environment: Environment
    choice: Choice | None = None  # how its exporter was chosen, where none was named
    metamorphic: Metamorphic | None = None  # what must hold whatever the model is; None for the torch artifact
    code: str | None = None  # sha256 of what no weights' file tells of: see Job.code
    reproduced: str | None = None  # SAME, or what differed, when it was made twice

    @property
    def file(self) -> File:
        """The file an engine loads; the weights of a large model lie in a second one beside it."""
        return self.files[0]

    @property
    def reproducible(self) -> bool:
        """Whether nothing is known against its being made again to the byte."""
        return self.reproduced in (None, SAME)

    @classmethod
    def upgrade(cls, document: dict[str, Any], schema: int) -> dict[str, Any]:
        """Schema 1 knew no rewrites, and had only ONNX Runtime to verify with."""
        if schema == 1:
            parity = {"p_value": None, "engine": "onnxruntime", **document["parity"]}
            document = {**document, "parity": parity, "rewrites": [], "requested": {}, "peak_memory_bytes": 0}
        return document


@dataclass(frozen=True, kw_only=True)
class Found:
    """An artifact on disk. `record` is None for a file that nobody vouches for."""

    path: Path
    record: Artifact | None
    stale: bool = False  # made from a checkpoint that is no longer the current one

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def kind(self) -> str:
        return self.record.kind if self.record else "onnx"


def find(folder: Path) -> Iterator[Found]:
    """Every recorded artifact of a model's folder, by name. Raises UserError on a record that cannot be read."""
    paths = (path for path in sorted(folder.glob("[!.]*.json")) if not OTHERS.fullmatch(path.name))
    records = [Artifact.load(path) for path in paths]
    current = current_sha(folder) or _newest_source(records)
    for record in records:
        origin = next((parent.sha256 for parent in record.parents if parent.role in ("checkpoint", "source")), None)
        yield Found(path=folder / record.file.path, record=record, stale=current is not None and origin != current)


def open_file(path: Path) -> Found:
    """A model file named by the user; its hash is checked where it has a record. Raises UserError when unusable."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; list what there is with: ls {path.parent}")
    record_path = path.with_suffix(".json")
    if not record_path.is_file():
        if path.suffix != ".onnx":
            raise UserError(f"{path}: not an ONNX file and without a record; give an .onnx file")
        return Found(path=path, record=None)
    record = Artifact.load(record_path)
    for file in record.files:
        file.verify(path.parent)
    return Found(path=path, record=record)


def current_sha(folder: Path) -> str | None:
    """The sha256 of the folder's current checkpoint, as its record says; None without one."""
    path = folder / "checkpoint.json"
    return Checkpoint.load(path).weights.sha256 if path.is_file() else None


def _newest_source(records: list[Artifact]) -> str | None:
    """The sha256 of the ONNX file that was exported from last, in a folder without a checkpoint."""
    sources = [(r.environment.time, p.sha256) for r in records for p in r.parents if p.role == "source"]
    return max(sources)[1] if sources else None


def is_true(path: Path, file: File) -> bool:
    """Whether the file on disk is the one recorded."""
    return path.is_file() and path.stat().st_size == file.bytes and sha256(path) == file.sha256

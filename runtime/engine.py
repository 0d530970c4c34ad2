"""Engine: what `python -m runtime build` leaves for GPUs that are not here, and how it is ordered."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from export.artifact import Found, is_true
from runtime import trt
from trainers.manifest import Environment, File, Record, environment, sha256
from trainers.process import Worker, WorkerError


class Engine(Record, frozen=True, kw_only=True):
    """One compiled engine, beside its record. Loading it is for programs on that GPU; nothing here does."""

    files: tuple[File, ...]
    artifact: str  # the name and hash of the file it was compiled from
    artifact_sha256: str
    compiler: str
    architecture: str
    batch: int
    profile: str
    seconds: float
    environment: Environment

    @property
    def file(self) -> File:
        return self.files[0]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to compile: one artifact for one architecture. `folder` is where the engine shall lie."""

    found: Found
    folder: Path
    architecture: str
    batch: int
    profile: str

    @property
    def path(self) -> Path:
        batch = "" if self.batch == 1 else f"-b{self.batch}"
        profile = "" if self.profile == trt.PROFILES[0] else f"-{self.profile}"
        return self.folder / f"{self.found.name}-{self.architecture}{batch}{profile}.engine"


def make(order: Order, compiler: str, *, timeout: float, memory_bytes: int | None) -> Engine | str:
    """Compile the engine in a process of its own, or find it made; a string is the reason why there is none."""
    record_path, source = order.path.with_suffix(".json"), sha256(order.found.path)
    known = Engine.find(record_path)
    same = (order.path.name, source, compiler)
    if (
        known is not None
        and (known.file.path, known.artifact_sha256, known.compiler) == same
        and is_true(order.path, known.file)
    ):
        return known
    with contextlib.closing(Worker("runtime.builder", threads=1, memory_bytes=memory_bytes)) as worker:
        try:
            seconds = worker.ask(
                "build", timeout=timeout, source=str(order.found.path), target=str(order.path), batch=order.batch,
                profile=order.profile, architecture=order.architecture,
            )["seconds"]  # fmt: skip
        except WorkerError as error:
            return str(error)
    engine = Engine(
        files=(File.of(order.path),), artifact=order.found.path.name, artifact_sha256=source, compiler=compiler,
        architecture=order.architecture, batch=order.batch, profile=order.profile, seconds=seconds,
        environment=environment(),
    )  # fmt: skip
    engine.save(record_path)
    return engine

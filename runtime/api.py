"""load and best: artifacts as functions in a program of the user's. docs/api.md shows how."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from export.artifact import Artifact, Found, open_file
from runtime import backends, fastest, saved
from runtime.backend import Backend
from runtime.bench import check_options
from runtime.identity import identity
from runtime.model import Model
from runtime.targets import model_folder, models
from trainers import external
from trainers.cli import choose
from trainers.manifest import UserError, environment, usable_threads

if TYPE_CHECKING:
    from runtime.tuning.best import Best

DEFAULT = {"torch": "eager", "onnx": "onnxruntime", "openvino": "openvino"}  # the backend of each kind of file
DEVICES = ("auto", "cpu", "cuda")


def load(
    path: str | os.PathLike[str], *, backend: str | None = None, device: str = "auto", threads: int | None = None,
    batch: int | None = None, factory: str | None = None, **options: str,
) -> Model:  # fmt: skip
    """Load a model file, after its hash was checked against its record.

    Without `backend`, a torch artifact (.safetensors) runs in eager, an ONNX file in onnxruntime, OpenVINO's (.xml) in
    openvino. `device` auto is the GPU where there is one that the backend can use, else the CPU. `threads` are all
    usable cores, or as many as given. `batch` is the size to be ready for: the file's own, or 1; others are loaded on
    first use. `factory` (FILE.py:FACTORY) allows a model of your own to be run, which no record does. The rest are the
    backend's options, as `python -m runtime backends` lists them.

    A file without a record is loaded unverified, in this process: do that with files you trust. PyTorch's engines set
    PyTorch's threads and its float32 precision for the whole process.

    Raises UserError on what the caller can mend (no such file, another hash, an engine or GPU that is not there), and
    BackendError when the engine refuses the file.
    """
    if factory is not None:
        external.allow(factory)
    found = open_file(Path(path))
    shape, dtype = _input(found)
    name = backend if backend is not None else DEFAULT[found.kind]
    engine = _engine(name, found)
    check_options(options, [name])
    where = _device(device, name, engine)
    cores, first = _threads(threads), _ready_for(batch, shape[0])
    model = Model(
        found, lambda size: engine.load(found, device=where, threads=cores, batch=size, options=options),
        backend=name, device=where, threads=cores, shape=shape, dtype=dtype,
    )  # fmt: skip
    model.prepare(first)
    return model


def best(
    name: str, *, max_drop: float = 0.5, device: str = "auto", batch: int = 1,
    artifacts: str | os.PathLike[str] = "artifacts", factory: str | None = None,
) -> Model:  # fmt: skip
    """Load what `tune` recommends at `batch`, or else what the newest report found fastest, with engine and settings.

    Both are of this machine; of a report only rows whose outputs were verified count. Files must still be what was
    measured, and lose at most `max_drop` percentage points of top-1. `device` auto is the GPU where there is one.

    Raises UserError when there is no report of this model on this machine and device, or no row qualifies; and what
    `load` raises.
    """
    folder = Path(artifacts)
    home = model_folder(name, folder)
    if home is None:
        known = ", ".join(models(folder))
        there = f"there are: {known}" if known else f"make one with: python -m export {name}"
        raise UserError(f"no model {name!r} in {folder}; {there}")
    where = ("cuda" if backends.gpu() else "cpu") if choose(device, DEVICES, "device") == "auto" else device
    tuned = _recommended(home, where, batch, max_drop)
    if tuned is not None:
        threads = _at_most(tuned.question.threads)
        return load(home / tuned.file.path, backend=tuned.backend, device=where, threads=threads, batch=batch,
                    factory=factory, **tuned.options)  # fmt: skip
    bench = f"python -m runtime bench {name} --device {where} --batch {batch} --artifacts {folder}"
    report = fastest.newest(folder, home.resolve().name, where)
    if report is None:
        raise UserError(f"{folder / saved.FOLDER} has no report of {name} on this machine's {where}; make one: {bench}")
    for row, path in fastest.rows(report, home, batch, max_drop):
        cell = row.cell
        return load(path, backend=cell.backend, device=cell.device, threads=_at_most(cell.threads), batch=batch,
                    factory=factory, **cell.options)  # fmt: skip
    raise UserError(f"the report of {report.environment.time} has no verified row of {name} at batch {batch} within "
                    f"{max_drop:g} points of top-1 whose file is still the same; allow more, or: {bench}")  # fmt: skip


def _recommended(home: Path, device: str, batch: int, max_drop: float) -> Best | None:
    """What a search on this machine has recommended, where it is an answer to this question and the file stands."""
    from runtime.tuning import best as tuned

    found = tuned.Best.find(tuned.path(home))
    if found is None or identity(found.environment) != identity(environment()):
        return None
    asked = (found.question.device, found.question.batch) == (device, batch) and found.question.metric == "latency"
    record = Artifact.find((home / found.file.path).with_suffix(".json"))
    same = record is not None and record.file.sha256 == found.file.sha256
    return found if asked and same and found.accuracy.drop <= max_drop else None


def _input(found: Found) -> tuple[tuple[int | None, ...], str]:
    """Shape (None: a free batch size) and type of the images that the file takes. Raises UserError."""
    record = found.record
    if record is None:
        from export.foreign import inspect

        read = inspect(found.path)
        return tuple(read["shape"]), "uint8" if read["dtype"] == "UINT8" else "float32"
    if record.file.path != found.path.name:
        raise UserError(f"{found.path} is not what an engine loads; give {found.path.with_name(record.file.path)}")
    if record.kind == "torch":
        external.check_allowed(record.model, "factory=")
    return record.inputs[0].shape, record.variant.input_dtype


def _engine(name: str, found: Found) -> Backend:
    """The backend of that name. Raises UserError when it is not one that computes with such a file."""
    engine = backends.get(name)
    if not engine.computes or not backends.serves(engine, found):
        able = [other for other in backends.names()
                if backends.get(other).computes and backends.serves(backends.get(other), found)]  # fmt: skip
        raise UserError(f"{name} does not run {found.path.name}; choose backend= from {', '.join(able)}")
    return engine


def _device(asked: str, name: str, engine: Backend) -> str:
    """The device meant. Raises UserError when the engine cannot run there."""
    if choose(asked, DEVICES, "device") == "auto":
        asked = "cuda" if backends.gpu() and engine.unusable("cuda") is None else "cpu"
    if reason := engine.unusable(asked):
        raise UserError(f"{name} on {asked}: {reason}; mend that, or choose another backend= or device=")
    return asked


def _at_most(measured: int) -> int:
    """The threads that something was measured with, or all that this process may use where those are fewer."""
    return min(measured, usable_threads())


def _threads(asked: int | None) -> int:
    usable = usable_threads()
    if asked is not None and not 1 <= asked <= usable:
        raise UserError(f"threads={asked}: this process may use {usable} cores; give at most as many")
    return asked or usable


def _ready_for(asked: int | None, fixed: int | None) -> int:
    """The batch size to load first. Raises UserError when the file has another, or it is none."""
    if asked is not None and (asked < 1 or fixed not in (None, asked)):
        raise UserError(f"batch={asked}: give " + (f"{fixed}, at which the file is fixed" if fixed else "at least 1"))
    return asked or fixed or 1

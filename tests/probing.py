"""What an engine says to a file: an empty string where it takes it and answers like PyTorch, else its own reason."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from export.artifact import open_file
from runtime import backends, trt
from runtime.backend import BackendError
from runtime.check import Reference, answers, judge
from runtime.worker import explain

ARCHITECTURES = ("SM86", "SM89", "SM120")
RUNNERS = ("onnxruntime", "openvino")
NOT_INSTALLED = "not installed"
ANOTHER_FORMAT = "another engine's format"


def compiles(path: Path, architecture: str) -> str:
    """TensorRT's parser and compiler for one architecture and free batches; of its reason the words are left out."""
    if path.suffix != ".onnx":
        return ANOTHER_FORMAT
    if not importlib.util.find_spec(trt.MODULES["rtx"]):
        return NOT_INSTALLED
    try:
        plan = trt.build(trt.load("rtx"), path, batch=4, profile="dynamic", architecture=architecture.lower())
    except BackendError as error:
        return str(error).partition(" (")[0]
    return "" if len(plan) > 1000 else "an engine of so few bytes holds nothing"


def runs(path: Path, runner: str, reference: Path) -> str:
    """A backend of `runtime` on the CPU: whether it loads the file and gives PyTorch's answers."""
    backend, found, batch = backends.get(runner), open_file(path), 4
    assert found.record is not None, "only recorded files are probed"
    if unusable := backend.unusable("cpu"):
        return unusable
    if found.kind not in backend.formats:
        return ANOTHER_FORMAT
    known = Reference.load(reference)
    if found.record.variant.input_dtype == "uint8":
        known = known.as_pixels(found.record.preprocess)
    from onnxruntime.capi import onnxruntime_pybind11_state as ort

    try:
        session = backend.load(found, device="cpu", threads=1, batch=batch, options={})
    except (BackendError, RuntimeError, ort.NotImplemented, ort.Fail, ort.InvalidGraph, ort.InvalidArgument) as error:
        return explain(error)
    reason = judge(answers(session, known.images, batch), known, found.record).reason
    session.close()
    return reason

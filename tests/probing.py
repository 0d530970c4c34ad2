"""What an engine says to a file: an empty string where it takes it and answers like PyTorch, else its own reason."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from export.artifact import open_file
from runtime import backends
from runtime.backend import BackendError
from runtime.check import Reference, answers, judge
from runtime.worker import explain

ARCHITECTURES = ("SM86", "SM89", "SM120")
RUNNERS = ("onnxruntime", "openvino")
NOT_INSTALLED = "not installed"
ANOTHER_FORMAT = "another engine's format"


def compiles(path: Path, architecture: str) -> str:
    """TensorRT's parser and compiler for one architecture, for batches of 1 to 8, types as the file has them."""
    if path.suffix != ".onnx":
        return ANOTHER_FORMAT
    if not importlib.util.find_spec("tensorrt_rtx"):
        return NOT_INSTALLED
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        error = parser.get_error(0)
        return f"its parser: {error.code().name} {error.node_operator()}"
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, architecture), 0)
    images = network.get_input(0)
    profile = builder.create_optimization_profile()
    profile.set_shape(images.name, *((batch, *tuple(images.shape)[1:]) for batch in (1, 4, 8)))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    return "" if plan is not None and len(bytes(plan)) > 1000 else "its builder found no way to build the network"


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

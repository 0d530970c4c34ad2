"""TensorRT's compiler in its flavours: TensorRT 10 and 11, which build for the GPU that is there, and TensorRT for RTX,
which also builds for GPUs that are not. All are strongly typed: the arithmetic is the file's own, TF32 off.
"""

from __future__ import annotations

import importlib
import importlib.util
import textwrap
from pathlib import Path
from typing import Any

from runtime.backend import BackendError

MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}  # flavour: its Python module
INSTALL = {"tensorrt": "tensorrt-cu13==10.16.1.11", "rtx": "tensorrt-rtx-cu13"}
PROFILES = ("static", "dynamic")
LARGEST = 64  # images in a batch that a dynamic profile still serves


def installed() -> str | None:
    """The first flavour whose module is there; it is not imported."""
    return next((flavour for flavour, name in MODULES.items() if importlib.util.find_spec(name)), None)


def load(flavour: str) -> Any:
    """The flavour's module. Raises BackendError when it is not installed."""
    if importlib.util.find_spec(MODULES[flavour]) is None:
        raise BackendError(f"flavour={flavour}: not installed; pip install {INSTALL[flavour]}")
    return importlib.import_module(MODULES[flavour])


def build(
    trt: Any, path: Path, *, batch: int, profile: str = "static", architecture: str | None = None,
    timing: Path | None = None,
) -> bytes:  # fmt: skip
    """Parse the ONNX file and compile its engine.

    A static profile serves `batch` images and no other number; a dynamic one serves 1 to LARGEST, tuned for `batch`.
    `architecture` ("sm86") names a GPU that need not be there, for TensorRT for RTX; None means the one that is.
    `timing` is a file where TensorRT keeps what it measured of kernels, for later builds. Raises BackendError with the
    compiler's own reason.
    """
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)  # the parser's errors are raised, not printed
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        raise BackendError(_refusal(parser))
    if network.num_inputs != 1 or network.num_outputs != 1:
        raise BackendError(
            f"it has {network.num_inputs} inputs and {network.num_outputs} outputs; one of each is measured"
        )
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default; the artifact says fp32
    if architecture is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(_target(trt, architecture), 0)
    config.add_optimization_profile(_profile(builder, network.get_input(0), batch, profile))
    if timing is not None:
        known = timing.read_bytes() if timing.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError("its builder found no way to build the network")
    if timing is not None:
        from trainers.manifest import write_atomic

        write_atomic(timing, bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def targets(trt: Any) -> list[str]:
    """The architectures that can be compiled for without their GPU: "sm75", …"""
    return sorted((name.lower() for name in dir(trt.ComputeCapability) if name.startswith("SM")),
                  key=lambda name: int(name[2:]))  # fmt: skip


def _target(trt: Any, architecture: str) -> Any:
    if architecture not in targets(trt):
        raise BackendError(f"no target {architecture}; version {trt.__version__} has {', '.join(targets(trt))}")
    return getattr(trt.ComputeCapability, architecture.upper())


def _profile(builder: Any, image: Any, batch: int, profile: str) -> Any:
    """The batch sizes to compile for: smallest, the one to tune for, largest."""
    fixed, *rest = image.shape
    if profile == "dynamic" and fixed != -1:
        raise BackendError(f"profile=dynamic: the file's batch size is fixed at {fixed}")
    sizes = (1, batch, max(batch, LARGEST)) if profile == "dynamic" else (batch, batch, batch)
    made = builder.create_optimization_profile()
    made.set_shape(image.name, *((size, *rest) for size in sizes))
    return made


def _refusal(parser: Any) -> str:
    """The parser's first error: its code and operator, and its words where it has some."""
    if not parser.num_errors:
        return "its parser: no reason given"
    error = parser.get_error(0)
    words = textwrap.shorten(str(error.desc()).removeprefix("Assertion failed: "), 200)
    said = "" if words in ("", "false") else f" ({words})"
    return f"its parser: {' '.join((error.code().name, error.node_operator())).strip()}{said}"

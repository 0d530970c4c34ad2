"""ONNX Runtime's execution providers: which is asked for, how it is set, and whether it really took the nodes."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.precision import PRECISIONS, Precision
from runtime import trt
from runtime.backend import BackendError

if TYPE_CHECKING:
    from export.artifact import Found

LEVELS = {
    "all": "ORT_ENABLE_ALL", "extended": "ORT_ENABLE_EXTENDED", "basic": "ORT_ENABLE_BASIC",
    "disabled": "ORT_DISABLE_ALL",
}  # fmt: skip
OWN = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}  # with ONNX Runtime's own kernels
TENSORRT = "TensorrtExecutionProvider"

Provider = tuple[str, dict[str, str]]  # its name and settings


def precision(artifact: Found) -> Precision:
    """The precision of the artifact; a file that nobody vouches for runs as fp32 does."""
    return PRECISIONS[artifact.record.variant.precision if artifact.record else "fp32"]


def settings(threads: int, level: str, options: Mapping[str, str]) -> Any:
    """A session's settings. One network is one after the other, so that only threads within an operator help."""
    import onnxruntime

    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads, made.inter_op_num_threads = threads, 1
    made.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[level])
    made.log_severity_level = 3
    made.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    spinning = "0" if options.get("spinning") == "off" else "1"
    made.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    return made


def own(device: str, options: Mapping[str, str]) -> Provider:
    """ONNX Runtime's own kernels. Raises BackendError where a CUDA graph cannot be had."""
    graph = options.get("cudagraph") == "on"
    if graph and device != "cuda":
        raise BackendError("cudagraph=on needs an NVIDIA GPU")
    if graph and options.get("binding") == "off":
        raise BackendError("cudagraph=on replays what it did with fixed buffers; leave binding=off out")
    if device != "cuda":
        return OWN[device], {}
    return OWN[device], {"use_tf32": "0", **({"enable_cuda_graph": "1"} if graph else {})}


def tensorrt(artifact: Found, device: str, options: Mapping[str, str], cache: Path) -> Provider:
    """TensorRT inside ONNX Runtime, with its engines in `cache`. Raises BackendError where it cannot be had.

    The network is not strongly typed there: it may use the types that the file has, and no other.
    """
    if device != "cuda":
        raise BackendError("provider=tensorrt needs an NVIDIA GPU")
    if importlib.util.find_spec("tensorrt") is None:
        raise BackendError(f"provider=tensorrt: not installed; pip install {trt.INSTALL['tensorrt']}")
    import tensorrt  # noqa: F401  (loads the libraries, which lie in a Python package where the loader does not look)

    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"  # the provider has no switch for it; the artifact says fp32
    name, rest = artifact.record.variant.precision if artifact.record else "fp32", precision(artifact).rest
    types = [kind for kind in ("fp16", "bf16", "int8") if kind == rest or name.startswith(kind)]
    graph = {"trt_cuda_graph_enable": "1"} if options.get("cudagraph") == "on" else {}
    return TENSORRT, {
        "trt_engine_cache_enable": "1", "trt_engine_cache_path": str(cache), "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache), **{f"trt_{kind}_enable": "1" for kind in types}, **graph,
    }  # fmt: skip


def placement(session: Any, asked: str) -> str:
    """How many nodes each provider was given. Raises BackendError unless the one asked for was given some."""
    got = session.get_providers()[0]
    if got != asked:
        raise BackendError(f"fallback: asked for {asked}, got {got}")
    counts = {group.ep_name: len(group.get_nodes()) for group in session.get_provider_graph_assignment_info()}
    if counts and asked not in counts:
        raise BackendError(f"fallback: asked for {asked}, all nodes went to {', '.join(counts)}")
    return ", ".join(f"{count} {name}" for name, count in counts.items())

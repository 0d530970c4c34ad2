"""ONNX Runtime with its own kernels: the CPU provider, or CUDA's; never a silent fallback from one to the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from export.precision import PRECISIONS
from runtime.backend import BackendError
from runtime.backends import lacking

if TYPE_CHECKING:
    import numpy as np

    from export.artifact import Found

formats = ("onnx",)
packages = ("onnxruntime-gpu", "onnxruntime")
options: Mapping[str, tuple[str, ...]] = {"graph": ("all", "extended", "basic", "disabled")}  # unasked: the precision's
computes = True

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
LEVELS = {
    "all": "ORT_ENABLE_ALL", "extended": "ORT_ENABLE_EXTENDED", "basic": "ORT_ENABLE_BASIC",
    "disabled": "ORT_DISABLE_ALL",
}  # fmt: skip


def unusable(device: str) -> str | None:
    return lacking("onnxruntime", "onnxruntime-gpu", device)


class OrtSession:
    """Inputs and outputs live in buffers bound once, so that a step copies nothing."""

    build_s = 0.0

    def __init__(self, session: Any, device: str, attested: dict[str, str]) -> None:
        import onnxruntime

        self._ort, self._session, self._device = onnxruntime, session, device
        self._input, self._output = session.get_inputs()[0], session.get_outputs()[0]
        self._dtype = numpy_type(self._input.type)
        self._binding: Any = None
        self._x: Any = None
        self._logits: Any = None
        self.attested = attested

    def bind(self, x: np.ndarray) -> None:
        cast = x.astype(self._dtype)
        if self._binding is not None and tuple(self._x.shape()) == cast.shape:
            self._x.update_inplace(cast)
            return
        self._x = self._ort.OrtValue.ortvalue_from_numpy(cast, self._device, 0)
        self._binding = self._session.io_binding()
        self._binding.bind_ortvalue_input(self._input.name, self._x)
        # The first run allocates the output; that buffer is then bound, so that later runs write into it.
        self._binding.bind_output(self._output.name, self._device)
        self.step()
        self._logits = self._binding.get_outputs()[0]
        self._binding.bind_ortvalue_output(self._output.name, self._logits)

    def step(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def sync(self) -> None:
        if self._device == "cuda":
            self._binding.synchronize_outputs()

    def fetch(self) -> np.ndarray:
        import numpy as np

        return np.array(self._logits.numpy(), dtype=np.float32)

    def close(self) -> None:
        self._binding = self._x = self._logits = self._session = None


def numpy_type(onnx_type: str) -> str:
    """ONNX Runtime's type name as numpy's. Raises BackendError for a type that images cannot be cast to."""
    names = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64",
             "tensor(uint8)": "uint8"}  # fmt: skip
    if onnx_type not in names:
        raise BackendError(f"its input is a {onnx_type}, images are floating-point numbers or uint8 pixels")
    return names[onnx_type]


def load(artifact: Found, *, device: str, threads: int, batch: int, options: Mapping[str, str]) -> OrtSession:
    import onnxruntime

    row = PRECISIONS[artifact.record.variant.precision if artifact.record else "fp32"]
    provider, level = PROVIDERS[device], options.get("graph", row.graph)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[level])
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if device == "cuda":
        onnxruntime.preload_dlls()  # CUDA's libraries lie in Python packages, where the loader does not look
    asked = [(provider, {"use_tf32": "0"}) if device == "cuda" else provider]
    session = onnxruntime.InferenceSession(str(artifact.path), settings, providers=asked,
                                           disabled_optimizers=list(row.disabled))  # fmt: skip
    if session.get_providers()[0] != provider:
        raise BackendError(f"fallback: asked for {provider}, got {session.get_providers()[0]}")
    if len(session.get_inputs()) != 1 or len(session.get_outputs()) != 1:
        raise BackendError(f"it has {len(session.get_inputs())} inputs and {len(session.get_outputs())} outputs; "
                           "one of each is measured")  # fmt: skip
    attested = {"provider": provider, "nodes": _placement(session), "graph": level}
    return OrtSession(session, device, attested)


def _placement(session: Any) -> str:
    """How many nodes each provider was given, as the session recorded it."""
    counts = [f"{len(group.get_nodes())} {group.ep_name}" for group in session.get_provider_graph_assignment_info()]
    return ", ".join(counts)

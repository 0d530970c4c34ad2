"""ONNX Runtime: its own kernels on the CPU or with CUDA, or TensorRT inside it; never a silent fallback."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from runtime import engine_cache, providers
from runtime.backend import BackendError
from runtime.backends import cores, lacking

if TYPE_CHECKING:
    import numpy as np

    from export.artifact import Found

formats = ("onnx",)
packages = ("onnxruntime-gpu", "onnxruntime")
options: Mapping[str, tuple[str, ...]] = {
    "graph": tuple(providers.LEVELS),  # unasked: as the precision needs it
    "binding": ("on", "off"),
    "spinning": ("on", "off"),
    "cores": ("all", "1"),
    "cudagraph": ("off", "on"),
    "provider": ("own", "tensorrt"),
}
computes = True


def unusable(device: str) -> str | None:
    return lacking("onnxruntime", "onnxruntime-gpu", device)


class OrtSession:
    """`session.run` as most programs call it: a host array in, and out."""

    def __init__(self, session: Any, attested: dict[str, str]) -> None:
        self._session = session
        self._input, self._output = session.get_inputs()[0], session.get_outputs()[0]
        self.shape: list[Any] = self._input.shape
        self._dtype = numpy_type(self._input.type)
        self._x: Any = None
        self._logits: Any = None
        self.build_s, self.attested = 0.0, attested

    def bind(self, x: np.ndarray) -> None:
        self._x = {self._input.name: x.astype(self._dtype)}

    def step(self) -> None:
        (self._logits,) = self._session.run([self._output.name], self._x)

    def sync(self) -> None: ...

    def fetch(self) -> np.ndarray:
        import numpy as np

        return np.array(self._logits, dtype=np.float32)

    def close(self) -> None:
        self._x = self._logits = self._session = None


class BoundSession(OrtSession):
    """Inputs and outputs live in buffers bound once, so that a step copies nothing."""

    def __init__(self, session: Any, attested: dict[str, str], device: str) -> None:
        import onnxruntime

        super().__init__(session, attested)
        self._ort, self._device = onnxruntime, device
        self._binding: Any = None

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
        first = self._ort.RunOptions()
        if self._device == "cuda":
            first.add_run_config_entry("gpu_graph_id", "-1")  # a CUDA graph is captured once the output has its place
        self._session.run_with_iobinding(self._binding, first)
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
        self._binding = None
        super().close()


def numpy_type(onnx_type: str) -> str:
    """ONNX Runtime's type name as numpy's. Raises BackendError for a type that images cannot be cast to."""
    names = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64",
             "tensor(uint8)": "uint8"}  # fmt: skip
    if onnx_type not in names:
        raise BackendError(f"its input is a {onnx_type}, images are floating-point numbers or uint8 pixels")
    return names[onnx_type]


def load(artifact: Found, *, device: str, threads: int, batch: int, options: Mapping[str, str]) -> OrtSession:
    if device == "cuda":
        import onnxruntime

        onnxruntime.preload_dlls()  # CUDA's libraries lie in Python packages, where the loader does not look
    if options.get("provider") == "tensorrt":
        return _in_tensorrt(artifact, device, threads, batch, options)
    return _session(artifact, device, threads, options, [providers.own(device, options)])


def _in_tensorrt(artifact: Found, device: str, threads: int, batch: int, options: Mapping[str, str]) -> OrtSession:
    """An engine is built for each part of the graph, some only when it is first run: one run belongs to building."""
    import numpy as np

    from trainers.manifest import sha256

    cache = engine_cache.path("onnxruntime", "", sha256(artifact.path), engine_cache.hardware(device), str(batch))
    cached = cache.is_dir() and any(cache.glob("*.engine"))
    started = time.perf_counter()
    asked = [providers.tensorrt(artifact, device, options, cache), providers.own(device, options)]
    session = _session(artifact, device, threads, options, asked)
    session.bind(np.zeros((batch, *session.shape[1:]), np.float32))
    session.step()
    session.sync()
    session.build_s = 0.0 if cached else time.perf_counter() - started
    session.attested["engine"] = "cached" if cached else "built"
    return session


def _session(
    artifact: Found, device: str, threads: int, options: Mapping[str, str], asked: list[providers.Provider]
) -> OrtSession:
    import onnxruntime

    precision, threads = providers.precision(artifact), cores(threads, options)
    level = options.get("graph", precision.graph)
    session = onnxruntime.InferenceSession(
        str(artifact.path), providers.settings(threads, level, options), providers=asked,
        disabled_optimizers=list(precision.disabled),
    )  # fmt: skip
    nodes = providers.placement(session, asked[0][0])
    if len(session.get_inputs()) != 1 or len(session.get_outputs()) != 1:
        raise BackendError(f"it has {len(session.get_inputs())} inputs and {len(session.get_outputs())} outputs; "
                           "one of each is measured")  # fmt: skip
    binding, spinning = options.get("binding", "on"), options.get("spinning", "on")
    attested = {"provider": asked[0][0], "nodes": nodes, "graph": level, "binding": binding, "spinning": spinning,
                "threads": f"{threads} intra, 1 inter"}  # fmt: skip
    return OrtSession(session, attested) if binding == "off" else BoundSession(session, attested, device)

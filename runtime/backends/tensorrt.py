"""NVIDIA TensorRT 10 or 11, or TensorRT for RTX: the ONNX file built into an engine, types as the file has them.

An engine is a cache, not an artifact: it lies in the user's private cache folder, keyed by the artifact's hash, the
compiler's version, the GPU, the batch size and the profile. Deleting it costs time only.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime import engine_cache, trt
from runtime.backend import BackendError
from runtime.backends import lacking

if TYPE_CHECKING:
    import numpy as np

    from export.artifact import Found

formats = ("onnx",)
packages = ("tensorrt-cu13", "tensorrt", "tensorrt-rtx-cu13")
options: Mapping[str, tuple[str, ...]] = {
    "flavour": ("auto", *trt.MODULES),  # auto: the first of them that is installed
    "profile": trt.PROFILES,
}
computes = True


def unusable(device: str) -> str | None:
    if device != "cuda":
        return "needs an NVIDIA GPU"
    flavour = trt.installed() or "tensorrt"
    return lacking(trt.MODULES[flavour], trt.INSTALL[flavour], device)


def load(artifact: Found, *, device: str, threads: int, batch: int, options: Mapping[str, str]) -> TensorRtSession:
    from trainers.manifest import sha256, write_atomic

    asked, profile = options.get("flavour", "auto"), options.get("profile", trt.PROFILES[0])
    flavour = (trt.installed() or "tensorrt") if asked == "auto" else asked
    module = trt.load(flavour)
    version, gpu = f"{flavour} {module.__version__}", engine_cache.hardware(device)
    path = engine_cache.path("tensorrt", ".engine", sha256(artifact.path), version, gpu, str(batch), profile)
    # TensorRT for RTX measures no kernels when it builds: it compiles them when a context is made, see _runtime_cache.
    timing = engine_cache.path("tensorrt", ".timing", version, gpu) if flavour == "tensorrt" else None
    runtime, build_s = module.Runtime(module.Logger(module.Logger.ERROR)), 0.0
    engine = runtime.deserialize_cuda_engine(path.read_bytes()) if path.is_file() else None
    if engine is None:
        started = time.perf_counter()
        plan = trt.build(module, artifact.path, batch=batch, profile=profile, timing=timing)
        build_s = time.perf_counter() - started
        write_atomic(path, plan)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendError("it built an engine that it cannot load")
    attested = {"version": version, "tf32": "off", "profile": profile, "engine": "built" if build_s else "cached"}
    if flavour == "tensorrt":
        return TensorRtSession(module, engine, engine.create_execution_context(), batch, build_s, attested)
    return _compiled(module, engine, path.with_suffix(".kernels"), batch, build_s, attested)


def _compiled(
    module: Any, engine: Any, path: Path, batch: int, build_s: float, attested: dict[str, str]
) -> TensorRtSession:
    """TensorRT for RTX compiles an engine's kernels on the GPU at their first use: that is building too.

    The kernels are kept beside the engine, so that the next load finds them.
    """
    from trainers.manifest import write_atomic

    config = engine.create_runtime_config()
    cache, known = config.create_runtime_cache(), path.is_file()
    if known:
        cache.deserialize(path.read_bytes())
    config.set_runtime_cache(cache)
    started = time.perf_counter()
    session = TensorRtSession(module, engine, engine.create_execution_context(config), batch, build_s, attested)
    session.step()
    session.sync()
    if not known:
        session.build_s += time.perf_counter() - started
        write_atomic(path, bytes(cache.serialize()))
    session.attested["kernels"] = "cached" if known else "built"
    return session


def succeed(result: tuple[Any, ...]) -> Any:
    """The value of a CUDA call, which returns its status first. Raises BackendError when it failed."""
    status, *values = result
    if int(status) != 0:
        raise BackendError(f"CUDA: {status.name}")
    return values[0] if values else None


class TensorRtSession:
    """An execution context on its own stream, with input and output buffers that stay on the GPU."""

    def __init__(
        self, trt: Any, engine: Any, context: Any, batch: int, build_s: float, attested: dict[str, str]
    ) -> None:
        import numpy as np
        from cuda.bindings import runtime as cuda

        self._cuda: Any = cuda
        self._engine, self._context = engine, context
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        x, logits = sorted(names, key=lambda name: engine.get_tensor_mode(name) != trt.TensorIOMode.INPUT)
        shape = (batch, *tuple(engine.get_tensor_shape(x))[1:])
        self._context.set_input_shape(x, shape)
        self._x = np.zeros(shape, trt.nptype(engine.get_tensor_dtype(x)))
        shape = tuple(self._context.get_tensor_shape(logits))
        self._logits = np.empty(shape, trt.nptype(engine.get_tensor_dtype(logits)))
        self._stream = succeed(cuda.cudaStreamCreate())
        self._events = [succeed(cuda.cudaEventCreate()) for _ in range(2)]
        self._buffers = [succeed(cuda.cudaMalloc(array.nbytes)) for array in (self._x, self._logits)]
        for name, address in zip((x, logits), self._buffers, strict=True):
            self._context.set_tensor_address(name, int(address))
        self.build_s, self.attested = build_s, attested
        self.bind(self._x)

    def bind(self, x: np.ndarray) -> None:
        self._x[...] = x
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        succeed(self._cuda.cudaMemcpy(self._buffers[0], self._x.ctypes.data, self._x.nbytes, kind))

    def step(self) -> None:
        self._context.execute_async_v3(int(self._stream))

    def sync(self) -> None:
        succeed(self._cuda.cudaStreamSynchronize(self._stream))

    def device_s(self) -> float:
        start, end = self._events
        succeed(self._cuda.cudaEventRecord(start, self._stream))
        self.step()
        succeed(self._cuda.cudaEventRecord(end, self._stream))
        succeed(self._cuda.cudaEventSynchronize(end))
        milliseconds: float = succeed(self._cuda.cudaEventElapsedTime(start, end))
        return milliseconds / 1e3

    def fetch(self) -> np.ndarray:
        import numpy as np

        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        succeed(self._cuda.cudaMemcpy(self._logits.ctypes.data, self._buffers[1], self._logits.nbytes, kind))
        return self._logits.astype(np.float32)

    def close(self) -> None:
        for address in self._buffers:
            succeed(self._cuda.cudaFree(address))
        for event in self._events:
            succeed(self._cuda.cudaEventDestroy(event))
        succeed(self._cuda.cudaStreamDestroy(self._stream))
        self._buffers, self._events, self._context, self._engine = [], [], None, None

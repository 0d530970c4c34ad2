"""NVIDIA TensorRT: the ONNX file built into an engine for this very GPU, TF32 off, types as the file has them.

An engine is a cache, not an artifact: it lies in the user's cache folder, keyed by the artifact's hash, TensorRT's
version, the GPU and the batch size. Deleting it costs time only.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.backend import BackendError
from runtime.backends import lacking

if TYPE_CHECKING:
    import numpy as np

    from export.artifact import Found

formats = ("onnx",)
packages = ("tensorrt-cu13", "tensorrt")
options: Mapping[str, tuple[str, ...]] = {}
computes = True


def unusable(device: str) -> str | None:
    if device != "cuda":
        return "needs an NVIDIA GPU"
    return lacking("tensorrt", "tensorrt-cu13==10.16.1.11", device)


def load(artifact: Found, *, device: str, threads: int, batch: int, options: Mapping[str, str]) -> TensorRtSession:
    import tensorrt as trt

    from trainers.manifest import sha256, write_atomic

    path = engine_path(sha256(artifact.path), trt.__version__, gpu_name(), batch)
    logger = trt.Logger(trt.Logger.ERROR)
    runtime, build_s = trt.Runtime(logger), 0.0
    engine = runtime.deserialize_cuda_engine(path.read_bytes()) if path.is_file() else None
    if engine is None:
        started = time.perf_counter()
        plan = build(trt, logger, artifact.path, batch)
        build_s = time.perf_counter() - started
        write_atomic(path, plan)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendError("it built an engine that it cannot load")
    attested = {"version": trt.__version__, "tf32": "off", "engine": "built" if build_s else "cached"}
    return TensorRtSession(trt, engine, batch, build_s, attested)


def build(trt: Any, logger: Any, path: Path, batch: int) -> bytes:
    """Parse the ONNX file and build its engine for one batch size. Raises BackendError with TensorRT's reason."""
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        reasons = [" ".join(str(parser.get_error(i).desc()).split()) for i in range(parser.num_errors)]
        raise BackendError(f"its parser refuses the file: {reasons[0] if reasons else 'no reason given'}")
    if network.num_inputs != 1 or network.num_outputs != 1:
        raise BackendError(
            f"it has {network.num_inputs} inputs and {network.num_outputs} outputs; one of each is measured"
        )
    config = builder.create_builder_config()
    if hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default; the artifact says fp32
    image = network.get_input(0)
    shape = (batch, *tuple(image.shape)[1:])
    profile = builder.create_optimization_profile()
    profile.set_shape(image.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError("its builder found no way to build the network")
    return bytes(plan)


def engine_path(sha256: str, version: str, gpu: str, batch: int) -> Path:
    """Where the engine is cached; the folder is made private, for loading an engine runs what it holds."""
    import platformdirs

    folder = Path(platformdirs.user_cache_dir("fastform")) / "engines"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    key = hashlib.sha256("|".join((sha256, version, gpu, str(batch))).encode()).hexdigest()
    return folder / f"{key[:32]}.engine"


def gpu_name() -> str:
    """The first GPU and its driver: an engine built for another one does not load."""
    from runtime.backends import gpu

    return (gpu() or "").split("; ")[0]


def succeed(result: tuple[Any, ...]) -> Any:
    """The value of a CUDA call, which returns its status first. Raises BackendError when it failed."""
    status, *values = result
    if int(status) != 0:
        raise BackendError(f"CUDA: {status.name}")
    return values[0] if values else None


class TensorRtSession:
    """An execution context on its own stream, with input and output buffers that stay on the GPU."""

    def __init__(self, trt: Any, engine: Any, batch: int, build_s: float, attested: dict[str, str]) -> None:
        import numpy as np
        from cuda.bindings import runtime as cuda

        self._cuda: Any = cuda
        self._engine, self._context = engine, engine.create_execution_context()
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        x, logits = sorted(names, key=lambda name: engine.get_tensor_mode(name) != trt.TensorIOMode.INPUT)
        shape = (batch, *tuple(engine.get_tensor_shape(x))[1:])
        self._context.set_input_shape(x, shape)
        self._x = np.empty(shape, trt.nptype(engine.get_tensor_dtype(x)))
        shape = tuple(self._context.get_tensor_shape(logits))
        self._logits = np.empty(shape, trt.nptype(engine.get_tensor_dtype(logits)))
        self._stream = succeed(cuda.cudaStreamCreate())
        self._buffers = [succeed(cuda.cudaMalloc(array.nbytes)) for array in (self._x, self._logits)]
        for name, address in zip((x, logits), self._buffers, strict=True):
            self._context.set_tensor_address(name, int(address))
        self.build_s, self.attested = build_s, attested

    def bind(self, x: np.ndarray) -> None:
        self._x[...] = x
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        succeed(self._cuda.cudaMemcpy(self._buffers[0], self._x.ctypes.data, self._x.nbytes, kind))

    def step(self) -> None:
        self._context.execute_async_v3(int(self._stream))

    def sync(self) -> None:
        succeed(self._cuda.cudaStreamSynchronize(self._stream))

    def fetch(self) -> np.ndarray:
        import numpy as np

        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        succeed(self._cuda.cudaMemcpy(self._logits.ctypes.data, self._buffers[1], self._logits.nbytes, kind))
        return self._logits.astype(np.float32)

    def close(self) -> None:
        for address in self._buffers:
            succeed(self._cuda.cudaFree(address))
        succeed(self._cuda.cudaStreamDestroy(self._stream))
        self._buffers, self._context, self._engine = [], None, None

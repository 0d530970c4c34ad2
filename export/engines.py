"""The engines that files are verified in: ONNX Runtime, and OpenVINO for what ONNX Runtime cannot run.

ONNX Runtime's CPU kernels know no bfloat16. Where OpenVINO is not installed such a file is run as the fp32 graph that
rounds to bfloat16 wherever the file would, and the record says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.util
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from export.precision import OPENVINO, PRECISIONS
from trainers.manifest import UserError, usable_threads

if TYPE_CHECKING:
    import onnxruntime

Infer = Callable[[np.ndarray], np.ndarray]
Answer = TypeVar("Answer")

MOST_STREAMS = 4  # batches in work at once: each takes memory of its own


def load(path: Path, precision: str = "fp32", target: str | None = None) -> Infer:
    """What gives the file's logits for a batch of images, on a stream's share of the cores; `each` keeps them all busy.

    Raises UserError with the engine's reason to refuse the file.
    """
    _release()
    if _in_openvino(precision, target):
        return openvino(path, "bf16" if precision == "bf16" else "f32")
    return rounding(path) if precision == "bf16" else _infer(session(path, precision, share()))


def _release() -> None:
    """Give back what earlier sessions took: glibc keeps it for later, a few hundred MB of each."""
    gc.collect()
    with contextlib.suppress(AttributeError, TypeError):  # another C library has no such function
        ctypes.CDLL(None).malloc_trim(0)


def each(infer: Callable[[np.ndarray], Answer], batches: Iterable[np.ndarray]) -> Iterator[Answer]:
    """What `infer` makes of each batch, in their order, with a batch in work on every stream.

    An operator that an engine runs in a single thread, and the preparation of the images, then leave no core idle.
    """
    with ThreadPoolExecutor(streams()) as pool:
        waiting: deque[Future[Answer]] = deque()
        for batch in batches:
            waiting.append(pool.submit(infer, batch))
            if len(waiting) > streams():
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def streams() -> int:
    """How many batches `each` has in work at once."""
    return min(MOST_STREAMS, usable_threads())


def share() -> int:
    """How many threads each of them gets."""
    return usable_threads() // streams()


def name(precision: str = "fp32", target: str | None = None) -> str:
    """The engine that `load` takes for it, with its version, and how it computes where that is not as the file says."""
    if not _in_openvino(precision, target):
        return version() + ", bf16 emulated by rounding" * (precision == "bf16")
    import openvino

    release = openvino.__version__.partition("-")[0]
    able = precision != "bf16" or "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return f"openvino {release}" + ", bf16 weights in f32 arithmetic" * (not able)


def _in_openvino(precision: str, target: str | None) -> bool:
    installed = importlib.util.find_spec("openvino") is not None
    return target == OPENVINO or (precision == "bf16" and installed)


def suffix(target: str | None) -> str:
    """The file name's ending of what is placed for a target."""
    return ".xml" if target == OPENVINO else ".onnx"


def version() -> str:
    """ONNX Runtime with its version."""
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


def session(path: Path, precision: str = "fp32", threads: int = 0) -> onnxruntime.InferenceSession:
    """An ONNX Runtime CPU session with the optimisations that the precision allows, on all cores or so many threads.

    Raises UserError with the engine's reason when it refuses the file.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    row = PRECISIONS[precision]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{row.graph.upper()}")
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(row.disabled)
        )
    except (
        errors.Fail,
        errors.InvalidGraph,
        errors.InvalidProtobuf,
        errors.NotImplemented,
        errors.InvalidArgument,
        errors.RuntimeException,
    ) as error:
        raise UserError(
            f"ONNX Runtime cannot load {path.name}: {str(error).splitlines()[0]}; try another "
            "--exporter, --opset or --quantize"
        ) from error


def rounding(path: Path) -> Infer:
    """A bf16 file in ONNX Runtime, in fp32 with every operator's result rounded to bfloat16."""
    import onnx

    from export.precision.bf16 import emulated

    with tempfile.TemporaryDirectory() as folder:
        widened = Path(folder) / path.name
        onnx.save(emulated(onnx.load(path)), widened)
        return _infer(session(widened, threads=share()))


def openvino(path: Path, arithmetic: str) -> Infer:
    """A file in OpenVINO on the CPU, in `arithmetic` ("f32", "bf16") for what is not quantized."""
    import openvino

    try:
        core = openvino.Core()
        settings = {"INFERENCE_PRECISION_HINT": arithmetic, "NUM_STREAMS": streams()}
        compiled: Any = core.compile_model(core.read_model(path), "CPU", settings)
    except RuntimeError as error:
        raise UserError(
            f"OpenVINO cannot load {path.name}: {str(error).splitlines()[0]}; try another --exporter or --quantize"
        ) from error
    own, first = threading.local(), threading.Lock()  # a request serves one thread at a time

    def infer(images: np.ndarray) -> np.ndarray:
        if not hasattr(own, "request"):
            with first:  # first inferences at the same time can wait for each other for ever (seen with 2026.4)
                request = compiled.create_infer_request()
                answer = np.array(request.infer([images])[0], np.float32)
            own.request = request
            return answer
        return np.array(own.request.infer([images])[0], np.float32)

    return infer


def _infer(loaded: onnxruntime.InferenceSession) -> Infer:
    name = loaded.get_inputs()[0].name
    return lambda images: loaded.run(None, {name: images})[0]

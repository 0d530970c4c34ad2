"""The measuring process of `python -m runtime roofline`: large graphs at full speed, and passes over memory.

    {"do": "peak", "engine": "openvino", "precision": "bf16", "graph": "MatMul", "threads": 2, "seconds": 1.0}
    {"do": "stream", "kernel": "triad", "working_set": 1048576, "threads": 2, "seconds": 0.2}

Each answers with what it counted and the seconds of every run. Run by `trainers.process`, never by hand.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime.chains import CHANNELS, DEPTH, FLOPS, PIXELS, SIDE, chain, example
from trainers.serving import serve

WARM = 3  # runs before the first that counts
AT_LEAST, AT_MOST = 5, 500  # runs that count: few enough to keep them all
# Which precisions each engine has kernels for on a CPU.
ENGINES = {"onnxruntime": ("fp32", "int8"), "openvino": ("fp32", "bf16", "int8"), "torch": ("fp32", "bf16", "int8")}


class Peaks:
    """The methods are the requests."""

    def peak(self, *, engine: str, precision: str, graph: str, threads: int, seconds: float) -> dict[str, Any]:
        """Time a graph in an engine. Raises what the engine raises where it has no such kernel."""
        return {"flops": FLOPS[graph], "samples_s": _time(RUNS[engine](precision, graph, threads), seconds)}

    def stream(self, *, kernel: str, working_set: int, threads: int, seconds: float) -> dict[str, Any]:
        """Time passes over arrays of float32."""
        import torch

        torch.set_num_threads(threads)
        count = 2 if kernel == "copy" else 3
        a, *sources = (torch.ones(working_set // (4 * count)) for _ in range(count))
        if kernel == "copy":
            run = lambda: a.copy_(sources[0])  # noqa: E731
        else:
            run = lambda: torch.add(sources[0], sources[1], alpha=3.0, out=a)  # noqa: E731
        return {"moved": 4 * count * a.numel(), "samples_s": _time(run, seconds)}


def _time(run: Callable[[], object], seconds: float) -> list[float]:
    for _ in range(WARM):
        run()
    taken: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(taken) < AT_LEAST or (len(taken) < AT_MOST and time.perf_counter() < deadline):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return taken


def _torch(precision: str, graph: str, threads: int) -> Callable[[], object]:
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(threads)
    if precision == "int8":
        if graph != "MatMul":
            raise RuntimeError("PyTorch convolves 8-bit numbers in quantized modules only")
        a = torch.randint(-8, 8, (SIDE, SIDE), dtype=torch.int8)
        return lambda: [torch._int_mm(a, a) for _ in range(DEPTH)]  # type: ignore[attr-defined]
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    if graph == "MatMul":
        b = torch.randn(SIDE, SIDE).to(dtype)
        return lambda: [torch.mm(b, b) for _ in range(DEPTH)]
    x = torch.randn(1, CHANNELS, PIXELS, PIXELS).to(dtype, memory_format=torch.channels_last)
    w = torch.randn(CHANNELS, CHANNELS, 3, 3).to(dtype, memory_format=torch.channels_last)
    return lambda: [F.conv2d(x, w, padding=1) for _ in range(DEPTH)]


def _onnxruntime(precision: str, graph: str, threads: int) -> Callable[[], object]:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(chain(graph, precision), settings, providers=["CPUExecutionProvider"])
    feeds = {"x": example(graph)}
    return lambda: session.run(None, feeds)


def _openvino(precision: str, graph: str, threads: int) -> Callable[[], object]:
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chain.onnx"
        path.write_bytes(chain(graph, "int8" if precision == "int8" else "fp32"))
        compiled = openvino.Core().compile_model(path, "CPU", {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32", "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
        })  # fmt: skip
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(example(graph), shared_memory=True))
    return lambda: request.infer()


RUNS = {"onnxruntime": _onnxruntime, "openvino": _openvino, "torch": _torch}


def explain(error: Exception) -> str:
    """An engine's exception as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


if __name__ == "__main__":
    serve(Peaks(), explain)

"""OpenVINO on the CPU, in the artifact's own arithmetic: its default would silently use bf16 where the CPU has it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from runtime import engine_cache
from runtime.backend import BackendError
from runtime.backends import cores, lacking

if TYPE_CHECKING:
    import numpy as np

    from export.artifact import Found

formats = ("onnx", "openvino")
packages = ("openvino",)
options: Mapping[str, tuple[str, ...]] = {
    "precision": ("own", "f32", "bf16"),  # own: as the record says
    "hint": ("latency", "throughput"),
    "streams": ("auto", "1", "2", "4"),  # auto: one for latency, what OpenVINO finds best for throughput
    "cores": ("all", "1"),
    "cache": ("off", "on"),
}
computes = True


def unusable(device: str) -> str | None:
    if device != "cpu":
        return "runs on the CPU only; add --device cpu"
    return lacking("openvino", "openvino", device)


class OpenVinoSession:
    """As many infer requests as can be in flight at once; they share one input, which is not copied.

    One request cannot be started twice: a step starts one that is idle, and waits for the oldest where none is. A
    request that is alone is run in the calling thread, which spares the hand-over to another.
    """

    def __init__(self, compiled: Any, build_s: float, attested: dict[str, str]) -> None:
        self._compiled: Any = compiled
        count = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self._idle: deque[Any] = deque(compiled.create_infer_request() for _ in range(count))
        self._busy: deque[Any] = deque()  # in the order they were started
        self._last: Any = self._idle[0]
        self._alone = count == 1
        self._dtype = compiled.input(0).get_element_type().to_dtype()
        self._x: Any = None
        self.build_s, self.attested = build_s, attested | {"requests": str(count)}

    def bind(self, x: np.ndarray) -> None:
        import openvino

        self.sync()
        self._x = x.astype(self._dtype, order="C")
        tensor = openvino.Tensor(self._x, shared_memory=True)
        for request in self._idle:
            request.set_input_tensor(tensor)

    def step(self) -> None:
        if self._alone:
            self._last.infer(share_outputs=True)
            return
        if not self._idle:
            self._wait()
        self._last = self._idle.popleft()
        self._last.start_async()
        self._busy.append(self._last)

    def sync(self) -> None:
        while self._busy:
            self._wait()

    def _wait(self) -> None:
        request = self._busy.popleft()
        request.wait()
        self._idle.append(request)

    def fetch(self) -> np.ndarray:
        import numpy as np

        return np.array(self._last.get_output_tensor().data, dtype=np.float32)

    def close(self) -> None:
        self.sync()
        self._idle.clear()
        self._last = self._compiled = self._x = None


def load(artifact: Found, *, device: str, threads: int, batch: int, options: Mapping[str, str]) -> OpenVinoSession:
    import openvino

    core = openvino.Core()
    model = core.read_model(artifact.path)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise BackendError(
            f"it has {len(model.inputs)} inputs and {len(model.outputs)} outputs; one of each is measured"
        )
    shape = model.input(0).get_partial_shape()
    if shape[0].is_dynamic:  # a fixed batch lets it plan its memory and choose its kernels
        shape[0] = batch
        model.reshape(shape)
    precision = arithmetic(artifact, options)
    asked_for = settings(precision, threads, options)
    started = time.perf_counter()
    compiled = core.compile_model(model, "CPU", asked_for)
    build_s = time.perf_counter() - started
    used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if used != precision:
        raise BackendError(f"fallback: asked for {precision} arithmetic, got {used}")
    streams = str(compiled.get_property("NUM_STREAMS"))
    if options.get("streams", "auto") not in ("auto", streams):
        raise BackendError(f"fallback: asked for {options['streams']} streams, {threads} threads make {streams}")
    attested = {"device": "CPU", "precision": used, "hint": options.get("hint", "latency"), "streams": streams}
    if options.get("cache") == "on":
        cached = compiled.get_property("LOADED_FROM_CACHE")
        attested["compiled"] = "cached" if cached else "built"
        build_s = 0.0 if cached else build_s
    return OpenVinoSession(compiled, build_s, attested)


def arithmetic(artifact: Found, options: Mapping[str, str]) -> str:
    """What floats are computed in: as the artifact's record says, unless something else is asked for."""
    record, asked = artifact.record, options.get("precision", "own")
    own = "bf16" if record is not None and record.variant.precision == "bf16" else "f32"
    return own if asked == "own" else asked


def settings(precision: str, threads: int, options: Mapping[str, str]) -> dict[str, Any]:
    """What the model is compiled with. The cache lies in the private folder: to load what is there is to run it."""
    hint, streams = options.get("hint", "latency"), options.get("streams", "auto")
    made: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": cores(threads, options),
        "PERFORMANCE_HINT": hint.upper(),
    }  # fmt: skip
    if streams != "auto" or hint == "latency":  # by itself a latency hint takes a stream for each socket
        made["NUM_STREAMS"] = 1 if streams == "auto" else int(streams)
    if options.get("cache") == "on":
        made["CACHE_DIR"] = str(engine_cache.folder("openvino"))
    return made

"""OpenVINO on the CPU, in the artifact's own arithmetic: its default would silently use bf16 where the CPU has it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from runtime.backend import BackendError
from runtime.backends import lacking

if TYPE_CHECKING:
    import numpy as np

    from export.artifact import Found

formats = ("onnx", "openvino")
packages = ("openvino",)
options: Mapping[str, tuple[str, ...]] = {"precision": ("own", "f32", "bf16")}  # own: as the record says
computes = True


def unusable(device: str) -> str | None:
    if device != "cpu":
        return "runs on the CPU only; add --device cpu"
    return lacking("openvino", "openvino", device)


class OpenVinoSession:
    """One infer request with its tensors shared, not copied."""

    def __init__(self, compiled: Any, build_s: float, attested: dict[str, str]) -> None:
        self._compiled: Any = compiled
        self._request: Any = compiled.create_infer_request()
        self._dtype = compiled.input(0).get_element_type().to_dtype()
        self._x: Any = None
        self.build_s, self.attested = build_s, attested

    def bind(self, x: np.ndarray) -> None:
        import openvino

        self._x = x.astype(self._dtype, order="C")
        self._request.set_input_tensor(openvino.Tensor(self._x, shared_memory=True))

    def step(self) -> None:
        # One request cannot be started twice, so a step waits; `infer()` does the same with more Python around it.
        self._request.start_async()
        self._request.wait()

    def sync(self) -> None: ...

    def fetch(self) -> np.ndarray:
        import numpy as np

        return np.array(self._request.get_output_tensor().data, dtype=np.float32)

    def close(self) -> None:
        self._request = self._compiled = self._x = None


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
    record = artifact.record
    own = "bf16" if record is not None and record.variant.precision == "bf16" else "f32"
    asked = options.get("precision", "own")
    precision = own if asked == "own" else asked
    settings = {
        "INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }  # fmt: skip
    started = time.perf_counter()
    compiled = core.compile_model(model, "CPU", settings)
    build_s = time.perf_counter() - started
    used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if used != precision:
        raise BackendError(f"fallback: asked for {precision} arithmetic, got {used}")
    return OpenVinoSession(compiled, build_s, {"device": "CPU", "precision": used})

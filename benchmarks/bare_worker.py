"""A timing loop as anyone would write it, over `session.run` and nothing of ours; run by benchmarks/measuring.py."""

from __future__ import annotations

import time
from typing import Any

from trainers.serving import peak_bytes, serve


class Bare:
    """ONNX Runtime, a random image, and a clock."""

    def open(self, *, path: str, threads: int, **_: Any) -> dict[str, Any]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return {}

    def load(self, *, batch: int, input: list[int | None], **_: Any) -> dict[str, Any]:
        import numpy as np

        x = np.random.default_rng(0).standard_normal((batch, *input[1:]), np.float32)  # type: ignore[arg-type]
        self._feed = {self._session.get_inputs()[0].name: x}
        self._session.run(None, self._feed)
        return {"check": None}

    def warm(self, *, seconds: float, **_: Any) -> dict[str, Any]:
        taken = self._loop(seconds, 1)
        return {"steady": True, "sample_s": taken[-1] / 1e9}

    def turn(self, *, seconds: float, at_least: int, at_most: int, **_: Any) -> dict[str, Any]:
        self._loop(0.1 * seconds, 1)
        return {"samples_ns": self._loop(seconds, at_least)[:at_most], "peak_bytes": peak_bytes()}

    def _loop(self, seconds: float, at_least: int) -> list[int]:
        taken: list[int] = []
        end = time.perf_counter() + seconds
        while len(taken) < at_least or time.perf_counter() < end:
            began = time.perf_counter_ns()
            self._session.run(None, self._feed)
            taken.append(time.perf_counter_ns() - began)
        return taken


if __name__ == "__main__":
    serve(Bare(), repr)

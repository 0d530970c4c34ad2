"""TensorRT's compiler in a process of its own: it may crash or hang on a file, which then is that file's reason.

    {"do": "build", "source": …, "target": …, "architecture": "sm86", "batch": 1, "profile": "static"}   -> seconds

Run by `trainers.process`, never by hand.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from runtime import trt
from runtime.worker import explain
from trainers.manifest import write_atomic
from trainers.serving import serve


class Builder:
    """Compiles with TensorRT for RTX, which needs no GPU."""

    def build(self, *, source: str, target: str, architecture: str, batch: int, profile: str) -> dict[str, Any]:
        compiler = trt.load("rtx")
        started = time.perf_counter()
        plan = trt.build(compiler, Path(source), batch=batch, profile=profile, architecture=architecture)
        seconds = time.perf_counter() - started
        write_atomic(Path(target), plan)
        return {"seconds": round(seconds, 3)}


if __name__ == "__main__":
    serve(Builder(), explain)

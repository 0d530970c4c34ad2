"""One engine, one artifact, one process: reads JSON lines on stdin, answers each with one on stdout.

    {"do": "open", "path": …, "backend": …, "device": …, "threads": …, "options": {…}, "factories": […]}
    {"do": "load", "batch": 8, "input": [null, 3, 224, 224]}   -> times, what the engine attests, its check
    {"do": "warm", "regime": "device", "seconds": 1.0}
    {"do": "turn", "regime": "device", "seconds": 0.2, "at_least": 3, "at_most": 1000}   -> nanoseconds of every sample
    {"do": "attest"}                                           -> what the loaded session executes; after the turns
    {"do": "profile", "runs": 20, "stem": …}                   -> each layer's time, by the engine's profiler
    {"do": "inspect", "path": …}                               -> inputs of a foreign ONNX file

Run by `trainers.process`, never by hand. An engine that needs no PyTorch runs here without importing it.
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.artifact import Artifact, Found
from runtime import backends
from runtime.backend import Backend, Session
from trainers import external
from trainers.serving import peak_bytes, serve

if TYPE_CHECKING:
    import numpy as np

    from runtime.measure import Work

WARM_SHARE = 0.1  # of a turn, before its samples: caches and threads were the other workers'


class Worker:
    """The state between requests: the artifact and the session that is loaded."""

    def __init__(self) -> None:
        self._session: Session | None = None
        self._works: dict[str, Work] = {}  # by regime

    def open(
        self, *, path: str, backend: str, device: str, threads: int, options: dict[str, str],
        factories: Sequence[str] = (),
    ) -> dict[str, Any]:  # fmt: skip
        """Read the record and check the file's hash; of the user's own models, only `factories` may be run."""
        for factory in factories:
            external.allow(factory)
        file = Path(path)
        record_path = file.with_suffix(".json")
        record = Artifact.load(record_path) if record_path.is_file() else None
        if record is not None:
            for recorded in record.files:
                recorded.verify(file.parent)
        self._found = Found(path=file, record=record)
        self._name, self._backend = backend, backends.get(backend)
        self._device, self._threads, self._options = device, threads, options
        pin(threads)
        return {}

    def load(self, *, batch: int, input: list[int | None], checked: int | None = None) -> dict[str, Any]:
        """Load for a batch size in place of the session before, then check its outputs, on all images by default."""
        self._close()
        started = time.perf_counter()
        session = self._session = self._backend.load(
            self._found, device=self._device, threads=self._threads, batch=batch, options=self._options
        )
        load_s = time.perf_counter() - started - session.build_s
        first_s, check, self._x = _first_and_check(session, self._backend, self._found, batch, input, checked)
        return {"build_s": session.build_s, "load_s": load_s, "first_s": first_s, "attested": session.attested,
                "check": check, "peak_bytes": peak_bytes()}  # fmt: skip

    def warm(self, *, regime: str, seconds: float) -> dict[str, Any]:
        from runtime.measure import REGIMES, warm_up

        work = self._works[regime] = REGIMES[regime](self._loaded(), self._x)
        count, steady, sample_s = warm_up(work, seconds=seconds)
        return {"warm_samples": count, "steady": steady, "sample_s": sample_s * work.steps}

    def turn(self, *, regime: str, seconds: float, at_least: int, at_most: int) -> dict[str, Any]:
        from runtime.energy import joules
        from runtime.measure import samples

        work = self._works[regime]
        samples(work, seconds=WARM_SHARE * seconds)
        before = joules()
        taken = samples(work, seconds=seconds, at_least=at_least, at_most=at_most)
        after = joules()
        used = None
        if before is not None and after is not None and after > before:
            used = (after - before) / (len(taken) * work.steps)
        return {"samples_ns": taken, "peak_bytes": peak_bytes(), "joules": used}

    def attest(self) -> dict[str, Any]:
        """What an inference executes; may take time and memory, so it is asked once all turns are over."""
        import msgspec

        from runtime import attest

        ran: dict[str, Any] = msgspec.to_builtins(attest.ran(self._name, self._loaded(), self._found))
        return ran

    def profile(self, *, runs: int, stem: str) -> dict[str, Any]:
        """The engine's own profile, and samples taken without it before."""
        import msgspec

        from runtime import profilers
        from runtime.measure import device, samples

        plain = samples(device(self._loaded(), self._x), seconds=0.5, at_least=runs)
        taken = profilers.get(self._name).take(self._loaded(), self._found, runs, Path(stem))
        return {"samples_ns": plain, **msgspec.to_builtins(taken)}

    def inspect(self, *, path: str) -> dict[str, Any]:
        from export.foreign import inspect

        return inspect(Path(path))

    def modules(self, *, names: list[str]) -> dict[str, Any]:
        """Which of these modules this process has imported."""
        return {"imported": [name for name in names if name in sys.modules]}

    def _loaded(self) -> Session:
        assert self._session is not None, "load comes first"
        return self._session

    def _close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session, self._works = None, {}


def pin(threads: int) -> None:
    """Keep the process, and every thread that it starts, on as many cores as it may use threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def _first_and_check(
    session: Session, backend: Backend, found: Found, batch: int, shape: list[int | None], checked: int | None
) -> tuple[float, dict[str, Any] | None, np.ndarray]:
    """Time the first inference and check the outputs; returns also the batch that the timed steps are for."""
    import msgspec
    import numpy as np

    from runtime import check

    record = found.record
    reference = check.Reference.load(record.reference.verify(check.home(found.path))) if record else None
    if reference is not None and record is not None and record.variant.input_dtype == "uint8":
        reference = reference.as_pixels(record.preprocess)
    if reference is not None:
        x, reference = reference.batch(batch), reference.first(checked)
    else:
        x = np.random.default_rng(0).standard_normal((batch, *(size or 1 for size in shape[1:])), np.float32)
    started = time.perf_counter()
    logits = check.answers(session, x, batch)
    first_s = time.perf_counter() - started
    if not backend.computes:
        return first_s, None, x
    if reference is not None and record is not None:
        result = check.judge(check.answers(session, reference.images, batch), reference, record)
    else:
        result = check.finite(logits)
    return first_s, msgspec.to_builtins(result), x


def explain(error: Exception) -> str:
    """An engine's exception as one short line, with its type where that says more."""
    from runtime.backend import BackendError

    text = " ".join(str(error).split())
    if isinstance(error, BackendError):
        return text
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return f"{type(error).__name__}: {textwrap.shorten(text, 240)}"


if __name__ == "__main__":
    serve(Worker(), explain)

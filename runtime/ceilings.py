"""Measuring the roofline: every engine's large graphs, and passes over memory, in processes of their own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from runtime import backends
from runtime.chains import FLOPS, TITLES
from runtime.peaks import ENGINES
from runtime.roofline import Peak, Roofline, Stream, caches, level
from trainers.manifest import Environment
from trainers.process import Worker, WorkerError
from trainers.quiet import other_load

TIMEOUT_S = 120.0  # of one answer
SMALLEST, STEP = 1 << 18, 4  # bytes of the smallest working set, and the factor to the next
LARGEST = 1 << 28  # bytes, unless a larger cache is to be left
MEMORY_SHARE = 1 / 8  # of the machine's memory, for the largest
BACKENDS = {"torch": "eager"}  # whose reasons an engine's are, where the names differ

Progress = Callable[[str, int, int], None]  # what happens now, steps done, steps in all


def measure(environment: Environment, threads: Sequence[int], seconds: float, progress: Progress) -> Roofline:
    """Peaks and bandwidths at every number of threads; `seconds` is the time for each of them.

    An engine that is not there, or has no kernel for a precision, is left out with its reason.
    """
    started, sizes = time.monotonic(), caches()
    unavailable = {
        engine: reason for engine in ENGINES if (reason := backends.get(BACKENDS.get(engine, engine)).unusable("cpu"))
    }
    engines = [engine for engine in ENGINES if engine not in unavailable]
    loads, peaks, streams = [other_load()], list[Peak](), list[Stream]()
    steps = [(count, engine) for count in threads for engine in (*engines, "memory")]
    for number, (count, engine) in enumerate(steps):
        progress(f"{engine}, {count} threads", number, len(steps))
        with contextlib.closing(Worker("runtime.peaks", threads=count)) as worker:
            if engine == "memory":
                streams += _streams(worker, count, sizes, working_sets(sizes, environment.memory_bytes), seconds)
            else:
                peaks += _peaks(worker, engine, count, seconds, unavailable)
    loads.append(other_load())
    return Roofline(
        environment=environment, caches=sizes, peaks=tuple(peaks), streams=tuple(streams), unavailable=unavailable,
        seconds=round(time.monotonic() - started, 3), other_load=max(filter(None, loads), default=None),
    )  # fmt: skip


def working_sets(sizes: dict[str, int], memory: int) -> list[int]:
    """Bytes, from those that a core's own cache holds to those that no cache holds."""
    last = min(max(LARGEST, 4 * max(sizes.values(), default=0)), int(memory * MEMORY_SHARE) or LARGEST)
    found = [SMALLEST]
    while found[-1] * STEP < last:
        found.append(found[-1] * STEP)
    return [*found, last]


def counts(most: int) -> list[int]:
    """1, 2, 4 … threads, and all."""
    return sorted({most, *(1 << power for power in range(most.bit_length()) if 1 << power <= most)})


def _peaks(worker: Worker, engine: str, threads: int, seconds: float, unavailable: dict[str, str]) -> Iterator[Peak]:
    for precision in ENGINES[engine]:
        for graph in FLOPS:
            asked: dict[str, Any] = {"engine": engine, "precision": precision, "graph": graph, "threads": threads}
            try:
                reply = worker.ask("peak", seconds=seconds, timeout=TIMEOUT_S, **asked)
            except WorkerError as error:
                unavailable[f"{engine} {precision} {graph}"] = str(error)
                continue
            yield Peak(precision=precision, engine=engine, graph=TITLES[graph], threads=threads, flops=reply["flops"],
                       samples_s=tuple(reply["samples_s"]))  # fmt: skip


def _streams(
    worker: Worker, threads: int, sizes: dict[str, int], sets: Sequence[int], seconds: float
) -> Iterator[Stream]:
    for size in sets:
        for kernel in ("copy", "triad"):
            reply = worker.ask("stream", kernel=kernel, working_set=size, threads=threads, seconds=seconds / 2,
                               timeout=TIMEOUT_S)  # fmt: skip
            yield Stream(kernel=kernel, threads=threads, working_set=size, moved=reply["moved"],
                         level=level(size, sizes, threads), samples_s=tuple(reply["samples_s"]))  # fmt: skip

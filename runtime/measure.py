"""The timing loop. It knows a session and a clock, nothing else.

A regime says what one sample is; each is a way of calling the same session, so every engine has all of them.
"""

from __future__ import annotations

import contextlib
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from runtime.backend import Session

Clock = Callable[[], int]  # nanoseconds, monotonic
Run = Callable[[], object]

WINDOW_S = 0.05  # a warm-up window, or five steps where those take longer
WINDOW_STEPS = 5
STEADY = 0.02  # warm once a window's median is less than this share below the best one before
BLOCK_S = 0.02  # what is timed at once where steps overlap
BLOCK_STEPS = (8, 4096)


@dataclass(frozen=True)
class Work:
    """What one sample runs, and how many inferences that is: a sample is the time of one of them."""

    run: Run
    steps: int = 1


def device(session: Session, x: np.ndarray) -> Work:
    """One inference, waited for: the input is where the engine wants it, the output stays where it is."""
    session.bind(x)
    step, sync = session.step, session.sync

    def run() -> None:
        step()
        sync()

    return Work(run)


def end_to_end(session: Session, x: np.ndarray) -> Work:
    """From an array in host memory to an array in host memory."""
    bind, step, sync, fetch = session.bind, session.step, session.sync, session.fetch

    def run() -> None:
        bind(x)
        step()
        sync()
        fetch()

    return Work(run)


def throughput(session: Session, x: np.ndarray) -> Work:
    """As many inferences as the engine keeps in flight, waited for together; a sample is a block's time over them."""
    one = device(session, x)
    least, most = BLOCK_STEPS
    typical = statistics.median(samples(one, seconds=0.0, at_least=3)) / 1e9
    steps = min(max(math.ceil(BLOCK_S / max(typical, 1e-9)), least), most)
    step, sync = session.step, session.sync

    def run() -> None:
        for _ in range(steps):
            step()
        sync()

    return Work(run, steps)


REGIMES: Mapping[str, Callable[[Session, np.ndarray], Work]] = {
    "device": device, "end-to-end": end_to_end, "throughput": throughput,
}  # fmt: skip


def samples(
    work: Work, *, seconds: float, at_least: int = 1, at_most: int = 1000, clock: Clock = time.perf_counter_ns
) -> list[int]:
    """Time inferences, in nanoseconds each, until `seconds` are over.

    At least `at_least` samples are taken whatever they cost, and never more than `at_most`.
    """
    run, steps = work.run, work.steps
    taken: list[int] = []
    with _no_collector():
        deadline = clock() + round(seconds * 1e9)
        while True:
            start = clock()
            run()
            end = clock()
            taken.append((end - start) // steps)
            if len(taken) >= at_most or (end >= deadline and len(taken) >= at_least):
                return taken


def warm_up(work: Work, *, seconds: float, clock: Clock = time.perf_counter_ns) -> tuple[int, bool, float]:
    """Run until a window's median is no longer clearly below the best one before it, or `seconds` are over.

    Returns the number of samples thrown away, whether the times had become steady, and the last median in seconds an
    inference.
    """
    deadline, best, count = clock() + round(seconds * 1e9), float("inf"), 0
    while True:
        window = samples(work, seconds=WINDOW_S, at_least=WINDOW_STEPS, clock=clock)
        count += len(window)
        median = statistics.median(window)
        if median > (1 - STEADY) * best:
            return count, True, median / 1e9
        if clock() >= deadline:
            return count, False, median / 1e9
        best = median


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    """A garbage collection inside a sample would be timed as if the engine had taken it."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

"""The timing loop. It knows a session and a clock, nothing else."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Protocol

Clock = Callable[[], int]  # nanoseconds, monotonic

WINDOW_S = 0.05  # a warm-up window, or five steps where those take longer
WINDOW_STEPS = 5
STEADY = 0.02  # warm once a window's median is less than this share below the best one before


class Steps(Protocol):
    """The part of a session that is timed."""

    def step(self) -> None: ...

    def sync(self) -> None: ...


def samples(
    session: Steps, *, seconds: float, at_least: int = 1, at_most: int = 1000, clock: Clock = time.perf_counter_ns
) -> list[int]:
    """Time single inferences, in nanoseconds, until `seconds` are over.

    At least `at_least` samples are taken whatever they cost, and never more than `at_most`.
    """
    step, sync = session.step, session.sync
    taken: list[int] = []
    with _no_collector():
        deadline = clock() + round(seconds * 1e9)
        while True:
            start = clock()
            step()
            sync()
            end = clock()
            taken.append(end - start)
            if len(taken) >= at_most or (end >= deadline and len(taken) >= at_least):
                return taken


def warm_up(session: Steps, *, seconds: float, clock: Clock = time.perf_counter_ns) -> int:
    """Run until the median stops falling or `seconds` are over; returns the number of steps taken."""
    deadline, best, steps = clock() + round(seconds * 1e9), float("inf"), 0
    while True:
        window = samples(session, seconds=WINDOW_S, at_least=WINDOW_STEPS, clock=clock)
        steps += len(window)
        median = statistics.median(window)
        if median > (1 - STEADY) * best or clock() >= deadline:
            return steps
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

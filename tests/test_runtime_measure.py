"""The timing loop, on a clock that only the session moves."""

from __future__ import annotations

import gc
import statistics

from runtime import measure
from runtime.backends.null import Null


class Scripted:
    """A session and its clock: each step takes the next of `costs` (nanoseconds), then the last one for ever."""

    def __init__(self, *costs: int) -> None:
        self.costs, self.now, self.steps, self.collected = costs, 0, 0, False

    def clock(self) -> int:
        return self.now

    def step(self) -> None:
        self.collected = self.collected or gc.isenabled()
        self.now += self.costs[min(self.steps, len(self.costs) - 1)] // 2
        self.steps += 1

    def sync(self) -> None:
        self.now += self.costs[min(self.steps - 1, len(self.costs) - 1)] // 2


def test_a_sample_is_one_step_and_its_sync() -> None:
    session = Scripted(1_000_000, 3_000_000, 2_000_000)
    assert measure.samples(session, seconds=0.008, clock=session.clock) == [1_000_000, 3_000_000, 2_000_000, 2_000_000]


def test_slow_sessions_still_give_the_least_number_of_samples() -> None:
    session = Scripted(10**9)
    assert len(measure.samples(session, seconds=0.1, at_least=3, clock=session.clock)) == 3


def test_fast_sessions_stop_at_the_most() -> None:
    session = Scripted(2)
    assert len(measure.samples(session, seconds=1.0, at_most=50, clock=session.clock)) == 50


def test_the_collector_rests_while_samples_are_taken_and_only_then() -> None:
    session = Scripted(2)
    measure.samples(session, seconds=1.0, at_most=50, clock=session.clock)
    assert not session.collected
    assert gc.isenabled()


def test_warm_up_ends_once_the_median_stops_falling() -> None:
    falling = [int(40e6 * 0.8**window) for window in range(4) for _ in range(measure.WINDOW_STEPS)]
    session = Scripted(*falling, 16_000_000)
    steps = measure.warm_up(session, seconds=60.0, clock=session.clock)
    assert len(falling) <= steps <= len(falling) + 3 * measure.WINDOW_STEPS


def test_warm_up_is_bounded() -> None:
    session = Scripted(*(int(1e9 * 0.9**i) for i in range(100)))
    measure.warm_up(session, seconds=8.0, clock=session.clock)
    assert session.now < 14e9


def test_the_floor_of_the_loop_is_below_two_microseconds() -> None:
    taken = measure.samples(Null(1), seconds=0.05, at_most=1000)
    assert len(taken) == 1000
    assert statistics.median(taken) < 2_000

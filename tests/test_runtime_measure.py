"""The timing loop, on a clock that only the session moves."""

from __future__ import annotations

import gc
import statistics

import numpy as np
import pytest

from runtime import measure
from runtime.backend import Session
from runtime.backends.null import Null
from runtime.measure import Work


class Scripted:
    """A session and its clock: each step takes the next of `costs` (nanoseconds), then the last one for ever."""

    build_s = 0.0
    attested: dict[str, str] = {}  # noqa: RUF012 (nobody changes it)

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

    def bind(self, x: np.ndarray) -> None:
        self.now += 100

    def fetch(self) -> np.ndarray:
        self.now += 1000
        return np.zeros(1)

    def close(self) -> None: ...


X = np.zeros(1)


def device(session: Session) -> Work:
    return measure.device(session, X)


def test_a_sample_is_one_step_and_its_sync() -> None:
    session = Scripted(1_000_000, 3_000_000, 2_000_000)
    taken = measure.samples(device(session), seconds=0.008, clock=session.clock)
    assert taken == [1_000_000, 3_000_000, 2_000_000, 2_000_000]


def test_a_sample_from_end_to_end_holds_the_copies() -> None:
    session = Scripted(1_000_000)
    taken = measure.samples(measure.end_to_end(session, X), seconds=0.003, clock=session.clock)
    assert set(taken) == {1_001_100}


def test_a_sample_of_throughput_is_a_blocks_share() -> None:
    """Eight steps and one sync: half a step's cost is paid at each step, the other half once a block."""
    session = Scripted(1_000_000)
    work = measure.throughput(session, X)
    assert work.steps >= measure.BLOCK_STEPS[0]
    (taken,) = measure.samples(work, seconds=0.0, clock=session.clock)
    assert taken == (work.steps * 500_000 + 500_000) // work.steps


def test_slow_sessions_still_give_the_least_number_of_samples() -> None:
    session = Scripted(10**9)
    assert len(measure.samples(device(session), seconds=0.1, at_least=3, clock=session.clock)) == 3


def test_fast_sessions_stop_at_the_most() -> None:
    session = Scripted(2)
    assert len(measure.samples(device(session), seconds=1.0, at_most=50, clock=session.clock)) == 50


def test_the_collector_rests_while_samples_are_taken_and_only_then() -> None:
    session = Scripted(2)
    measure.samples(device(session), seconds=1.0, at_most=50, clock=session.clock)
    assert not session.collected
    assert gc.isenabled()


def test_warm_up_ends_once_the_median_stops_falling() -> None:
    falling = [int(40e6 * 0.8**window) for window in range(4) for _ in range(measure.WINDOW_STEPS)]
    session = Scripted(*falling, 16_000_000)
    steps, steady, _ = measure.warm_up(device(session), seconds=60.0, clock=session.clock)
    assert len(falling) <= steps <= len(falling) + 3 * measure.WINDOW_STEPS
    assert steady


def test_warm_up_is_bounded() -> None:
    session = Scripted(*(int(1e9 * 0.9**i) for i in range(100)))
    _, steady, _ = measure.warm_up(device(session), seconds=8.0, clock=session.clock)
    assert session.now < 14e9
    assert not steady


@pytest.mark.parametrize("regime", measure.REGIMES)
def test_the_floor_of_the_loop_is_below_two_microseconds(regime: str) -> None:
    taken = measure.samples(measure.REGIMES[regime](Null(1), X), seconds=0.2, at_most=20)
    assert len(taken) == 20
    assert statistics.median(taken) < 2_000

"""Statistics on samples whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from runtime import stats
from trainers.stats import Estimate


@pytest.mark.parametrize(("q", "needed"), [(0.9, 100), (0.99, 1000)])
def test_a_percentile_is_withheld_below_its_sample_size(q: float, needed: int) -> None:
    samples = np.arange(needed, dtype=float)
    assert stats.percentile(samples[:-1], q) is None
    assert stats.percentile(samples, q) == pytest.approx(q * (needed - 1))


def test_the_median_needs_no_minimum() -> None:
    assert stats.percentile(np.array([1.0, 2.0, 30.0]), 0.5) == 2.0


def test_the_paired_ratio_survives_drift_that_hides_it_from_the_pooled_medians() -> None:
    """The machine slows down fourfold; the second contender is 10% faster all the time, with 1% noise."""
    random = np.random.default_rng(1)
    speeds = np.linspace(1, 4, 12)
    slow, fast = ([list(base * speed * random.normal(1, 0.01, 40)) for speed in speeds] for base in (1.1, 1.0))
    ratio = stats.speedup(slow, fast)
    assert ratio.low < 1.1 < ratio.high
    assert ratio.high - ratio.low < 0.02
    spread = stats.median(slow)
    assert spread.high / spread.low > 1.3, "the medians alone could not have told the two apart"


def test_the_interval_of_equals_holds_one_about_95_times_in_100() -> None:
    random, held = np.random.default_rng(2), 0
    for _ in range(200):
        a, b = (random.lognormal(0, 0.1, (10, 20)) for _ in range(2))
        ratio = stats.speedup(list(a), list(b))
        held += ratio.low <= 1 <= ratio.high
    assert 180 <= held <= 200


def test_the_interval_of_equals_whose_processes_differ_holds_one() -> None:
    """Each of four processes is faster or slower by 2% for as long as it lives; its rounds vary by a tenth of that."""
    random, processes = np.random.default_rng(3), np.repeat([0, 1, 2, 3], 8).tolist()
    held, held_alone = 0, 0
    for _ in range(200):
        a, b = (random.normal(1, 0.02, 4)[processes][:, None] * random.normal(1, 0.002, (32, 20)) for _ in range(2))
        ratio, alone = stats.speedup(list(a), list(b), processes), stats.speedup(list(a), list(b))
        held += ratio.low <= 1 <= ratio.high
        held_alone += alone.low <= 1 <= alone.high
    assert held_alone < 120, "as if no two rounds had a process in common, the interval is far too narrow"
    assert held >= 150, "of four processes it is still somewhat narrow: they say little of how processes differ"


def test_of_several_processes_the_mean_counts_and_not_the_middle_one() -> None:
    """Two turns of memory's luck: one process 4% slower, then one 4% faster, and rounds that do not vary."""
    base, processes = [[1.0]] * 6, [0, 0, 0, 1, 1, 1]
    luck = [[1.04]] * 3 + [[1 / 1.04]] * 3
    assert stats.speedup(base, luck, processes).value == pytest.approx(1.0)


def test_a_wide_interval_is_vague() -> None:
    assert Estimate(10.0, 1.0, 100.0).is_vague
    assert not Estimate(1.5, 1.4, 1.6).is_vague


def test_rounds_of_different_number_cannot_be_paired() -> None:
    with pytest.raises(AssertionError):
        stats.speedup([[1.0]], [[1.0], [1.0]])

"""Statistics on raw samples: medians, and percentiles that say when they mean nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainers import stats
from trainers.stats import Estimate

Rounds = Sequence[Sequence[float]]
Processes = Sequence[int]  # by round


def pooled(rounds: Rounds) -> np.ndarray:
    """All samples of all rounds."""
    return np.concatenate([np.asarray(turn, float) for turn in rounds])


def percentile(samples: np.ndarray, q: float) -> float | None:
    """The `q` percentile (0 < q < 1), or None below about 10 / (1 - q) samples: p99 of 71 samples is the maximum."""
    return float(np.quantile(samples, q)) if q <= 0.5 or len(samples) >= needed(q) else None


def needed(q: float) -> int:
    """How many samples the `q` percentile takes: ten beyond it."""
    return round(10 / (1 - q))


def median(rounds: Rounds, processes: Processes = ()) -> Estimate:
    """The median sample. Its interval resamples whole rounds, for samples of one round share the machine's mood.

    `processes` says by which process each round was taken (none: all by one): what they share is resampled with them.
    """
    of_rounds = stats.median(_medians(rounds), processes)
    value = float(np.median(pooled(rounds)))
    return Estimate(value, min(of_rounds.low, value), max(of_rounds.high, value))


def speedup(baseline: Rounds, rounds: Rounds, processes: Processes = ()) -> Estimate:
    """How many times faster than the baseline: the median over rounds of the ratio of the two turns' medians.

    The two's processes change between the same rounds; of several the geometric mean is taken, for each is faster or
    slower for all of its life, and a median over all rounds would follow one of them.
    """
    return stats.ratio(_medians(baseline), _medians(rounds), processes)


def _medians(rounds: Rounds) -> list[float]:
    return [float(np.median(turn)) for turn in rounds]


def change(old: Rounds, new: Rounds, were: Processes = (), are: Processes = ()) -> Estimate:
    """How many times as long `new` takes as `old`: the ratio of the medians of two runs that shared no rounds.

    The interval is the two-sample percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
    chapters 8 and 13): the rounds of each run are drawn anew, independently, and the ratio taken of the two medians of
    their medians. Whole rounds are drawn for the reason that `median` gives, and with them the processes that took
    them. Below five rounds a run it is too narrow.
    """
    generator = np.random.default_rng(0)
    was, now = (stats.resampled(_medians(rounds), processes, generator)
                for rounds, processes in ((old, were), (new, are)))  # fmt: skip
    value = float(np.median(pooled(new)) / np.median(pooled(old)))
    low, high = np.quantile(now / was, (0.025, 0.975))
    return Estimate(value, min(float(low), value), max(float(high), value))

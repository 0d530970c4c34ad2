"""Statistics on raw samples: medians, and percentiles that say when they mean nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainers import stats
from trainers.stats import Estimate

Rounds = Sequence[Sequence[float]]


def pooled(rounds: Rounds) -> np.ndarray:
    """All samples of all rounds."""
    return np.concatenate([np.asarray(turn, float) for turn in rounds])


def percentile(samples: np.ndarray, q: float) -> float | None:
    """The `q` percentile (0 < q < 1), or None below about 10 / (1 - q) samples: p99 of 71 samples is the maximum."""
    return float(np.quantile(samples, q)) if q <= 0.5 or len(samples) >= needed(q) else None


def needed(q: float) -> int:
    """How many samples the `q` percentile takes: ten beyond it."""
    return round(10 / (1 - q))


def median(rounds: Rounds) -> Estimate:
    """The median sample. Its interval resamples whole rounds, for samples of one round share the machine's mood."""
    of_rounds = stats.median(_medians(rounds))
    value = float(np.median(pooled(rounds)))
    return Estimate(value, min(of_rounds.low, value), max(of_rounds.high, value))


def speedup(baseline: Rounds, rounds: Rounds) -> Estimate:
    """How many times faster than the baseline: the median over rounds of the ratio of the two turns' medians."""
    return stats.ratio(_medians(baseline), _medians(rounds))


def _medians(rounds: Rounds) -> list[float]:
    return [float(np.median(turn)) for turn in rounds]

"""Statistics on raw samples: medians, percentiles that say when they mean nothing, bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

RESAMPLES = 2000
VAGUE = 2.0
Rounds = Sequence[Sequence[float]]


class Estimate(msgspec.Struct, frozen=True):
    """A value and its 95% interval."""

    value: float
    low: float
    high: float

    @property
    def is_vague(self) -> bool:
        """Whether the interval spans more than a factor of two: the value alone would then mislead."""
        return self.high > VAGUE * self.low


def pooled(rounds: Rounds) -> np.ndarray:
    """All samples of all rounds."""
    return np.concatenate([np.asarray(turn, float) for turn in rounds])


def percentile(samples: np.ndarray, q: float) -> float | None:
    """The `q` percentile (0 < q < 1), or None below about 10 / (1 - q) samples: p99 of 71 samples is the maximum."""
    needed = 10 / (1 - q)
    return float(np.quantile(samples, q)) if q <= 0.5 or len(samples) >= needed - 1e-6 else None


def median(rounds: Rounds) -> Estimate:
    """The median sample. Its interval resamples whole rounds, for samples of one round share the machine's mood."""
    medians = np.array([np.median(turn) for turn in rounds])
    low, high = _interval(medians)
    value = float(np.median(pooled(rounds)))
    return Estimate(value, min(low, value), max(high, value))


def speedup(baseline: Rounds, rounds: Rounds) -> Estimate:
    """How many times faster than the baseline: the median over rounds of the ratio of the two turns' medians.

    Turns of the same round ran within seconds of each other, so drift that hits both cancels.
    """
    assert len(baseline) == len(rounds) > 0, "rounds are paired"
    ratios = np.array([np.median(b) / np.median(r) for b, r in zip(baseline, rounds, strict=True)])
    low, high = _interval(ratios)
    return Estimate(float(np.median(ratios)), low, high)


def _interval(values: np.ndarray) -> tuple[float, float]:
    """The 95% percentile-bootstrap interval of the median; the generator is seeded, so equal data give equal text."""
    drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(np.median(values[drawn], axis=1), (0.025, 0.975))
    return float(low), float(high)

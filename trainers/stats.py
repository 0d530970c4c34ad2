"""Estimates with bootstrap intervals, from raw samples that were taken in paired rounds."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

RESAMPLES = 2000
VAGUE = 2.0


class Estimate(msgspec.Struct, frozen=True):
    """A value and its 95% interval."""

    value: float
    low: float
    high: float

    @property
    def is_vague(self) -> bool:
        """Whether the interval spans more than a factor of two: the value alone would then mislead."""
        return self.high > VAGUE * self.low


def median(values: Sequence[float]) -> Estimate:
    """The median and its 95% percentile-bootstrap interval; the generator is seeded: equal data give equal text."""
    found = np.asarray(values, float)
    drawn = np.random.default_rng(0).integers(0, len(found), (RESAMPLES, len(found)))
    low, high = np.quantile(np.median(found[drawn], axis=1), (0.025, 0.975))
    return Estimate(float(np.median(found)), float(low), float(high))


def ratio(values: Sequence[float], base: Sequence[float]) -> Estimate:
    """The median over rounds of values / base, each pair taken in one round.

    Turns of the same round ran within seconds of each other, so drift that hits both cancels.
    """
    assert len(values) == len(base) > 0, "rounds are paired"
    return median([value / other for value, other in zip(values, base, strict=True)])

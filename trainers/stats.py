"""Estimates with bootstrap intervals, from raw samples that were taken in paired rounds."""

from __future__ import annotations

import math
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


def median(values: Sequence[float], groups: Sequence[int] = ()) -> Estimate:
    """The median (of several groups the mean of their medians), and its 95% percentile-bootstrap interval."""
    low, high = np.quantile(resampled(values, groups, np.random.default_rng(0)), (0.025, 0.975))
    return Estimate(float(np.mean([np.median(group) for group in _split(values, groups)])), float(low), float(high))


def resampled(values: Sequence[float], groups: Sequence[int], generator: np.random.Generator) -> np.ndarray:
    """RESAMPLES bootstrap draws of that median; seed the generator, for equal data to give equal text.

    `groups` says which values have a cause of error in common, as the rounds of one process have (none: all are of one
    group). Groups are drawn, and values inside each: Davison and Hinkley, Bootstrap Methods and their Application,
    1997, section 3.8; Kalibera and Jones (Rigorous Benchmarking in Reasonable Time, ISMM 2013) do so for processes.
    """
    members = _split(values, groups)
    sizes = np.array([len(group) for group in members])
    table = np.full((len(members), sizes.max()), np.nan)  # a group a row, as long as the longest
    for row, group in zip(table, members, strict=True):
        row[: len(group)] = group
    chosen = generator.integers(0, len(members), (RESAMPLES, len(members), 1))
    within = generator.random((RESAMPLES, len(members), sizes.max())) * sizes[chosen]
    samples = np.where(np.arange(sizes.max()) < sizes[chosen], table[chosen, within.astype(int)], np.nan)
    in_order = np.sort(samples)  # nan last
    middle = np.concatenate([(sizes[chosen] - 1) // 2, sizes[chosen] // 2], axis=2)
    return np.asarray(np.take_along_axis(in_order, middle, axis=2).mean(axis=(1, 2)))


def _split(values: Sequence[float], groups: Sequence[int]) -> list[np.ndarray]:
    found, names = np.asarray(values, float), np.asarray(groups or [0] * len(values))
    return [found[names == name] for name in np.unique(names)]


def ratio(values: Sequence[float], base: Sequence[float], groups: Sequence[int] = ()) -> Estimate:
    """The median over rounds of values / base, each pair taken in one round; of several groups the geometric mean.

    Turns of the same round ran within seconds of each other, so drift that hits both cancels.
    """
    assert len(values) == len(base) > 0, "rounds are paired"
    found = median([math.log(value / other) for value, other in zip(values, base, strict=True)], groups)
    return Estimate(math.exp(found.value), math.exp(found.low), math.exp(found.high))

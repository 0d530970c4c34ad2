"""An image's logits depend on that image alone: files that break this are found, others are not accused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from export.metamorphic import IMAGES, check

RNG = np.random.default_rng(0)
SAMPLES = RNG.normal(size=(IMAGES, 1, 4, 4)).astype(np.float32)
WEIGHTS = RNG.normal(size=(16, 10)).astype(np.float32)


def sound(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1) @ WEIGHTS


def normalised_by_batch(x: np.ndarray) -> np.ndarray:
    return sound((x - x.mean(0)) / (x.std(0) + 1))


def first_row_for_all(x: np.ndarray) -> np.ndarray:
    return sound(np.repeat(x[:1], len(x), axis=0))


def wrong_order(x: np.ndarray) -> np.ndarray:
    return np.sort(sound(x), axis=0)


def two_is_special(x: np.ndarray) -> np.ndarray:
    return sound(x) * (1.01 if len(x) == 2 else 1.0)


def drifts_by_row(x: np.ndarray) -> np.ndarray:
    return sound(x) + np.arange(len(x), dtype=np.float32)[:, None]


def none(x: np.ndarray) -> np.ndarray:
    return sound(x) * np.float32(np.nan)


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_a_sound_file_holds(batch: int | None) -> None:
    result = check(sound, SAMPLES, batch, "fp32")
    assert not result.broken
    compared = [result.equal_rows, result.permuted, result.alone, result.sizes]
    assert [value is None for value in compared] == {None: [False] * 4, 1: [True] * 4, 3: [False] * 2 + [True] * 2}[
        batch
    ]


@pytest.mark.parametrize(
    ("broken", "relation"),
    [
        (normalised_by_batch, "alone"),
        (first_row_for_all, "permuted"),
        (wrong_order, "permuted"),
        (two_is_special, "sizes"),
        (drifts_by_row, "equal_rows"),
        (none, "alone"),
    ],
)
def test_each_fault_is_found(broken: Callable[[np.ndarray], np.ndarray], relation: str) -> None:
    result = check(broken, SAMPLES, None, "fp32")
    assert f"{relation} " in result.broken


def test_a_fixed_batch_is_checked_in_what_applies() -> None:
    assert "permuted" in check(first_row_for_all, SAMPLES, 4, "fp32").broken


def test_rounded_values_may_tip_but_rows_may_not_get_lost() -> None:
    def tipped(x: np.ndarray) -> np.ndarray:
        return sound(x) + np.float32(0.05 * (len(x) > 1))

    assert not check(tipped, SAMPLES, None, "int8").broken
    assert check(tipped, SAMPLES, None, "fp32").broken
    assert check(first_row_for_all, SAMPLES, None, "int8-dynamic").broken


def test_few_images_are_enough() -> None:
    assert not check(sound, SAMPLES[:3], None, "fp32").broken
    assert check(two_is_special, SAMPLES[:3], None, "fp32").broken

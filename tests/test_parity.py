"""The judge itself: intervals, gates, and what each failure is called."""

from __future__ import annotations

import numpy as np
import pytest

from export.artifact import Parity
from export.parity import compare, mean_cosine, paired_drop
from export.precision import PRECISIONS, Tolerance

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(400, 10)).astype(np.float32)
LABELS = LOGITS.argmax(1)
STRICT = Tolerance(error=1e-3, cosine=0.99, drop=1.0)


def judge(logits: np.ndarray, tolerance: Tolerance = STRICT) -> Parity:
    with np.errstate(invalid="ignore"):
        return compare(
            logits, logits[:4], LOGITS, LOGITS, LABELS, split="test", verified_on="", batches=(1, 32),
            tolerance=tolerance, engine="test",
        )  # fmt: skip


def test_equal_logits_pass() -> None:
    parity = judge(LOGITS)
    assert parity.passed
    assert parity.max_abs_err == 0
    assert parity.accuracy == 100
    assert parity.cosine == pytest.approx(1)


def test_an_error_beyond_tolerance_fails() -> None:
    parity = judge(LOGITS + 0.01)
    assert not parity.passed
    assert "largest error" in parity.reason


def test_lost_accuracy_fails_only_when_the_whole_interval_is_beyond() -> None:
    only_drop = Tolerance(drop=1.0)
    few, many = LOGITS.copy(), LOGITS.copy()
    few[:6] = np.roll(few[:6], 1, axis=1)  # 1.5 points lost, but of 400 images: not sure to be above 1
    many[:60] = np.roll(many[:60], 1, axis=1)
    assert judge(few, only_drop).passed
    assert "top-1 falls" in judge(many, only_drop).reason


def test_a_cosine_below_tolerance_fails() -> None:
    assert "cosine" in judge(LOGITS + RNG.normal(size=LOGITS.shape).astype(np.float32), Tolerance(cosine=0.99)).reason


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_none_fails(bad: float) -> None:
    broken = LOGITS.copy()
    broken[3, 3] = bad
    assert judge(broken, Tolerance()).reason == "the output is not finite"


def test_the_single_images_count() -> None:
    parity = compare(
        LOGITS,
        LOGITS[:4] + 1,
        LOGITS,
        LOGITS,
        LABELS,
        split="test",
        verified_on="",
        batches=(1, 32),
        tolerance=STRICT,
        engine="test",
    )
    assert parity.max_abs_err == pytest.approx(1, rel=1e-5)


def test_constant_logits_prove_nothing() -> None:
    flat = np.ones_like(LOGITS)
    parity = compare(
        flat,
        flat[:4],
        flat,
        flat,
        LABELS,
        split="t",
        verified_on="",
        batches=(1,),
        tolerance=Tolerance(),
        engine="test",
    )
    assert "do not vary" in parity.reason


def test_the_paired_interval_keeps_its_level() -> None:
    """In 2,000 simulated studies the true drop lies inside about 95 of 100 intervals."""
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(2000):
        draw = rng.random(500)
        before, after = draw < 0.8, (draw > 0.02) & (draw < 0.8) | (draw > 0.99)  # loses 2%, wins 1%: a drop of 1
        low, high = paired_drop(before, after)[1]
        inside += low <= 1.0 <= high
    assert 0.93 < inside / 2000 < 0.985


def test_cosine_is_by_row() -> None:
    assert mean_cosine(LOGITS, 3 * LOGITS) == pytest.approx(1)
    assert mean_cosine(LOGITS, -LOGITS) == pytest.approx(-1)


def test_every_precision_is_judged_by_something() -> None:
    for name, row in PRECISIONS.items():
        tolerance = row.tolerance
        assert any(value is not None for value in (tolerance.error, tolerance.drop)), name

"""Parity: is the exported file still the model? Judged on real images against PyTorch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np

from export import engines
from export.artifact import Parity
from export.engines import Infer
from export.engines import session as session
from export.precision import Tolerance

SINGLES = 8  # images that are also run alone


def engine(precision: str = "fp32", target: str | None = None) -> str:
    """What files of this precision are run in, with its version."""
    return engines.name(precision, target)


def run(infer: Infer, batches: Iterable[np.ndarray], batch: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Logits of all images in batches, and of the first SINGLES images one by one.

    A file with a fixed `batch` runs at that size only; its last batch is filled up and cut again.
    """
    batches = iter(batches)
    first = next(batches)
    alone = [first[i : i + 1] for i in range(min(SINGLES, len(first)))] if batch is None else []
    single = list(engines.each(infer, alone))
    kept: list[int] = []

    def parts() -> Iterator[np.ndarray]:
        for images in chain([first], batches):
            for part, count in fitted(images, batch):
                kept.append(count)
                yield part

    whole = list(engines.each(infer, parts()))
    logits = np.concatenate([answers[:count] for answers, count in zip(whole, kept, strict=True)])
    return logits, np.concatenate(single) if single else logits[:0]


def fitted(images: np.ndarray, batch: int | None) -> Iterator[tuple[np.ndarray, int]]:
    """Cut images to the batch that a file takes, with the number of rows that count."""
    if batch is None:
        yield images, len(images)
        return
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        missing = batch - len(part)
        yield np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]), len(part)


def compare(
    logits: np.ndarray,
    single: np.ndarray,
    module: np.ndarray,
    checkpoint: np.ndarray,
    labels: np.ndarray | None,
    *,
    split: str,
    verified_on: str,
    batches: tuple[int, ...],
    tolerance: Tolerance,
    engine: str,
) -> Parity:
    """Compare logits (N, classes) with those of the PyTorch module and of the checkpoint, and judge them.

    Without `labels` (N,) accuracy is not measured, and not judged.
    """
    both, expected = np.concatenate([logits, single]), np.concatenate([module, module[: len(single)]])
    finite = bool(np.isfinite(both).all())
    accuracy = _accuracy(logits, module, checkpoint, labels)
    scale = float(module.std())
    error = float(np.abs(both - expected).max()) if finite else float(np.finfo(np.float32).max)
    cosine = mean_cosine(both, expected) if finite else 0.0
    reasons = _reasons(tolerance, finite, error, scale, cosine, accuracy["own_drop_interval"])
    return Parity(
        split=split,
        images=len(logits),
        verified_on=verified_on,
        batches=batches,
        max_abs_err=error,
        logit_scale=scale,
        cosine=cosine,
        top1_agreement=100 * float((logits.argmax(1) == module.argmax(1)).mean()),
        passed=not reasons,
        reason="; ".join(reasons),
        engine=engine,
        **accuracy,
    )


def _accuracy(
    logits: np.ndarray, module: np.ndarray, checkpoint: np.ndarray, labels: np.ndarray | None
) -> dict[str, Any]:
    """The fields of Parity that need labels; each None without."""
    if labels is None:
        return dict.fromkeys(
            ("accuracy", "checkpoint_accuracy", "drop", "drop_interval", "own_drop", "own_drop_interval", "p_value")
        )
    hits, own, origin = (x.argmax(1) == labels for x in (logits, module, checkpoint))
    drop, interval = paired_drop(origin, hits)
    own_drop, own_interval = paired_drop(own, hits)
    return {
        "accuracy": 100 * float(hits.mean()), "checkpoint_accuracy": 100 * float(origin.mean()),
        "drop": drop, "drop_interval": interval, "own_drop": own_drop, "own_drop_interval": own_interval,
        "p_value": mcnemar(origin, hits),
    }  # fmt: skip


def mean_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The mean cosine between the rows of two (N, classes) arrays."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / np.maximum(norms, 1e-30)).mean())


def divergence(expected: np.ndarray, answers: np.ndarray) -> float:
    """The mean Kullback-Leibler divergence, in nats, of softmax(`answers`) from softmax(`expected`), both (N, classes).

    NaN where a logit is not finite.
    """
    p, q = _log_softmax(expected), _log_softmax(answers)
    return float(np.maximum((np.exp(p) * (p - q)).sum(1).mean(), 0.0))  # below zero only by rounding


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    difference: np.ndarray = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return difference


def paired_drop(before: np.ndarray, after: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Points of accuracy lost between two vectors of hits on the same images, with the paired 95% interval.

    The interval is Wald's with half an observation added to each discordant cell (Agresti and Min, 2005), which
    keeps its level when few images change sides.
    """
    lost, won, count = int((before & ~after).sum()), int((~before & after).sum()), len(before)
    drop = (lost - won) / count
    b, c, n = lost + 0.5, won + 0.5, count + 2
    half = 1.96 * np.sqrt(b + c - (b - c) ** 2 / n) / n
    middle = (b - c) / n
    return 100 * drop, (100 * float(middle - half), 100 * float(middle + half))


def mcnemar(before: np.ndarray, after: np.ndarray) -> float:
    """The exact two-sided p-value that two vectors of hits on the same images differ by chance (McNemar, 1947)."""
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    tail = sum(math.comb(lost + won, k) for k in range(min(lost, won) + 1))
    return min(1.0, 2 * tail / 2 ** (lost + won))


def _reasons(
    tolerance: Tolerance,
    finite: bool,
    error: float,
    scale: float,
    cosine: float,
    interval: tuple[float, float] | None,
) -> list[str]:
    """What lies beyond the tolerance, in words."""
    if not finite:
        return ["the output is not finite"]
    reasons = []
    if scale < 1e-6:
        reasons.append("PyTorch's logits do not vary, so agreement would mean nothing")
    if tolerance.error is not None and error > tolerance.error * scale:
        reasons.append(f"largest error {error:.2g} exceeds {tolerance.error:g} of the logits' deviation {scale:.2g}")
    if tolerance.cosine is not None and cosine < tolerance.cosine:
        reasons.append(f"cosine {cosine:.4f} is below {tolerance.cosine:g}")
    if tolerance.drop is not None and interval is not None and interval[0] > tolerance.drop:
        reasons.append(f"top-1 falls by {interval[0]:.2f} to {interval[1]:.2f} points, more than {tolerance.drop:g}")
    return reasons

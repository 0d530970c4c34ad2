"""Check: whether the session that is timed computes what its artifact's record promises.

Every session answers the reference images before it is timed. A wrong answer is fast for the wrong reason.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from export.artifact import FAILED
from export.pixels import to_pixels
from runtime.backend import Session
from trainers.manifest import Struct
from trainers.spec import Preprocess

if TYPE_CHECKING:
    from export.artifact import Artifact, Parity

SIGMAS = 3.0  # the reference is a small sample: a shortfall within three standard errors is chance
SLACK = 3.0  # an engine may be this many times as far from PyTorch as the record's own run was
FP32_ERROR = 1e-3  # of the logits' standard deviation: two fp32 engines differ in the order of their sums
COSINE_FLOOR = 1e-3  # a cosine's distance from 1 that is never called wrong for an approximate file


class Check(Struct, frozen=True, kw_only=True):
    """A session's logits against PyTorch's on the reference images; accuracies are percentages."""

    images: int
    reason: str = ""  # why the outputs are wrong; empty when they are not
    max_abs_err: float | None = None  # these four are None where there is nothing to compare with
    cosine: float | None = None
    top1_agreement: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Reference:
    """Preprocessed images float32 [n, C, H, W], PyTorch's logits float32 [n, classes], labels int64 [n]."""

    images: np.ndarray
    logits: np.ndarray
    labels: np.ndarray

    @classmethod
    def load(cls, path: Path) -> Reference:
        from safetensors.numpy import load_file

        return cls(**load_file(path))

    def as_pixels(self, preprocess: Preprocess) -> Reference:
        """The same with uint8 images, for a file that normalises them itself."""
        return dataclasses.replace(self, images=to_pixels(self.images, preprocess))

    def first(self, count: int | None) -> Reference:
        """The same with so many of its images at most."""
        return Reference(images=self.images[:count], logits=self.logits[:count], labels=self.labels[:count])

    def batch(self, size: int) -> np.ndarray:
        """`size` images, repeated from the start where there are fewer."""
        return np.ascontiguousarray(self.images[np.arange(size) % len(self.images)])


def home(artifact: Path) -> Path:
    """The model's folder, where the reference lies: the artifact's, or the one above for a failed export."""
    return artifact.parent.parent if artifact.parent.name == FAILED else artifact.parent


def answers(session: Session, images: np.ndarray, batch: int) -> np.ndarray:
    """The session's logits for all images, in batches of `batch`; the last batch is filled up from the start."""
    logits = []
    for start in range(0, len(images), batch):
        session.bind(np.ascontiguousarray(images[np.arange(start, start + batch) % len(images)]))
        session.step()
        session.sync()
        logits.append(session.fetch())
    return np.concatenate(logits)[: len(images)]


def judge(logits: np.ndarray, reference: Reference, record: Artifact) -> Check:
    """Compare logits with the reference; the record's own parity says how far off they may be."""
    want = reference.logits
    if logits.shape != want.shape:
        return Check(images=len(want), reason=f"logits of shape {list(logits.shape)}, expected {list(want.shape)}")
    if not np.isfinite(logits).all():
        return Check(images=len(want), reason="logits that are not finite")
    error, cosine = float(np.abs(logits - want).max()), _cosine(logits, want)
    agreement = _percent(logits.argmax(1) == want.argmax(1))
    accuracy = _percent(logits.argmax(1) == reference.labels)
    if record.variant.gelu != "exact" and record.parity.drop is not None:
        before = _percent(want.argmax(1) == reference.labels)
        reason = _less_accurate(accuracy, before, record.parity, len(want))
    elif record.variant.precision == "fp32":
        allowed = max(FP32_ERROR * float(want.std()), SLACK * record.parity.max_abs_err)
        reason = _exceeds("max error", error, allowed)
    else:
        allowed = max(SLACK * (1 - record.parity.cosine), COSINE_FLOOR)
        reason = _exceeds("1 - cosine", 1 - cosine, allowed) or _disagrees(agreement, record.parity, len(want))
    return Check(images=len(want), reason=reason, max_abs_err=error, cosine=cosine, top1_agreement=agreement,
                 accuracy=accuracy)  # fmt: skip


def finite(logits: np.ndarray) -> Check:
    """All that can be said of a file that nobody vouches for."""
    return Check(images=len(logits), reason="" if np.isfinite(logits).all() else "outputs that are not finite")


def _exceeds(what: str, value: float, allowed: float) -> str:
    return f"{what} {value:.2g} against PyTorch, its record allows {allowed:.2g}" if value > allowed else ""


def _disagrees(agreement: float, parity: Parity, images: int) -> str:
    if agreement >= _lowest(parity.top1_agreement, images):
        return ""
    return f"top-1 agreement {agreement:.1f}% with PyTorch, its record promises {parity.top1_agreement:.1f}%"


def _less_accurate(accuracy: float, before: float, parity: Parity, images: int) -> str:
    """Another activation moves every logit; what the record still promises is the accuracy."""
    promised = before - max(parity.drop or 0.0, 0.0)
    if accuracy >= _lowest(promised, images):
        return ""
    return f"accuracy {accuracy:.1f}% on the reference images, its record promises {promised:.1f}%"


def _lowest(percent: float, images: int) -> float:
    """The smallest percentage on so few images that chance explains."""
    share = min(max(percent / 100, 0.0), 1.0)
    return percent - 100 * SIGMAS * math.sqrt(max(share * (1 - share), 0.01) / images)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The mean over images of the cosine between two logit vectors."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean((a * b).sum(1) / np.maximum(norms, 1e-30)))


def _percent(hits: np.ndarray) -> float:
    return 100 * float(np.mean(hits))

"""Question: what the user wants the fastest form for, and what it may cost."""

from __future__ import annotations

import hashlib

import msgspec

from runtime.tuning.metrics import METRICS
from trainers.manifest import Struct

BASELINE = "eager"  # what the last race compares with; it takes part in no other


class Question(Struct, frozen=True, kw_only=True):
    """Limits are on top of the metric: the smallest file below a latency, the fastest below a size."""

    model: str
    device: str
    batch: int
    threads: int
    engines: tuple[str, ...]
    metric: str = "latency"
    max_drop: float = 0.5  # points of top-1, on validation images
    max_latency_s: float | None = None
    max_bytes: int | None = None
    images: int | None = 1000  # of the validation split that accuracy is judged on; None: all

    @property
    def regime(self) -> str:
        return METRICS[self.metric]

    def key(self, weights: str) -> str:
        """What a search is continued by; `weights` is the checkpoint's sha256."""
        asked = msgspec.json.encode([self, weights], order="sorted")
        return hashlib.sha256(asked).hexdigest()[:16]

"""Accuracy: what a candidate loses against the checkpoint."""

from __future__ import annotations

from trainers.manifest import Struct


class Accuracy(Struct, frozen=True, kw_only=True):
    """Points of top-1 lost against the checkpoint in PyTorch, on the same images of the split that is chosen on.

    Without labels `drop` is how often the first class differs, which no drop can exceed.
    """

    split: str
    images: int
    drop: float
    drop_interval: tuple[float, float]
    agreement: float  # percent of the images with PyTorch's first class
    labelled: bool

    def within(self, budget: float) -> bool:
        return self.drop <= budget

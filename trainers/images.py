"""Images: a labelled set of uint8 images that can be read by index, before anything is packed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from trainers.manifest import UserError

Shape = tuple[int, int, int]
Pixels = NDArray[np.uint8]
Indices = NDArray[np.int64]  # and labels


class Unreadable(UserError):
    """Images that cannot be decoded: the first one's name, what is wrong with it, and how many there are."""

    def __init__(self, first: str, reason: str, count: int) -> None:
        more = f" (and {count - 1} more)" if count > 1 else ""
        super().__init__(f"{first}{more} cannot be read as an image: {reason}; mend or remove what cannot be read")
        self.first, self.reason, self.count = first, reason, count

    @classmethod
    def together(cls, failures: Sequence[Unreadable]) -> Unreadable:
        """One error for all of them."""
        return cls(failures[0].first, failures[0].reason, sum(failure.count for failure in failures))


class Images(Protocol):
    """What a source yields for one split."""

    @property
    def labels(self) -> Indices:
        """int64 [N]."""

    @property
    def shape(self) -> Shape:
        """(height, width, channels) of every image."""

    def read(self, indices: Indices) -> Pixels:
        """uint8 [B, H, W, C], C-contiguous. Safe to call from several threads."""

    def identity(self) -> str:
        """A sha256 that changes with the set, cheap enough to compute without decoding anything."""


@dataclass(frozen=True, kw_only=True, eq=False)
class InMemory:
    """Images that lie decoded in memory: uint8 [N, H, W, C]."""

    array: Pixels
    labels: Indices

    @property
    def shape(self) -> Shape:
        height, width, channels = self.array.shape[1:]
        return height, width, channels

    def read(self, indices: Indices) -> Pixels:
        return np.take(self.array, indices, axis=0)

    def identity(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self.array).data).hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class Subset:
    """Some images of another set, in the order given."""

    images: Images
    indices: Indices

    @property
    def labels(self) -> Indices:
        return self.images.labels[self.indices]

    @property
    def shape(self) -> Shape:
        return self.images.shape

    def read(self, indices: Indices) -> Pixels:
        return self.images.read(self.indices[indices])

    def identity(self) -> str:
        return hashlib.sha256(self.images.identity().encode() + self.indices.tobytes()).hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class Recoloured:
    """The same images as grey or as RGB."""

    images: Images
    channels: int

    @property
    def labels(self) -> Indices:
        return self.images.labels

    @property
    def shape(self) -> Shape:
        height, width, _ = self.images.shape
        return height, width, self.channels

    def read(self, indices: Indices) -> Pixels:
        found = self.images.read(indices)
        if found.shape[-1] == self.channels:
            return found
        if self.channels == 3:
            return np.repeat(found, 3, axis=-1)
        weights = np.array([299, 587, 114], dtype=np.uint32)  # luma, ITU-R BT.601
        grey: Pixels = ((found * weights).sum(axis=-1, keepdims=True) // 1000).astype(np.uint8)
        return grey

    def identity(self) -> str:
        return f"{self.images.identity()}:{self.channels}"


def recolour(images: Images, channels: int) -> Images:
    """`images` with as many channels as a model takes. Raises UserError where that is neither 1 nor 3."""
    if channels not in (1, 3):
        raise UserError(f"images can be made grey (1 channel) or RGB (3), not {channels}; use another input shape")
    return images if images.shape[-1] == channels else Recoloured(images=images, channels=channels)


def cut(images: Images, share: float, seed: int, stream: int) -> tuple[Images, Images]:
    """Split off a share of each class at random; returns (what is left, what was cut).

    `stream` keeps the draws of two cuts by one seed apart. Raises UserError when no class has two images.
    """
    # RandomState's stream is frozen for ever, unlike Generator's: a recorded seed stays reproducible.
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, stream])))
    taken = []
    for label in np.unique(images.labels):
        members = random.permutation(np.flatnonzero(images.labels == label))
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        taken.append(members[:count])
    chosen = np.sort(np.concatenate(taken))
    if not len(chosen):
        raise UserError("no class has two images, so none can be set aside for validation; give more images")
    rest = np.setdiff1d(np.arange(len(images.labels)), chosen)
    return Subset(images=images, indices=rest), Subset(images=images, indices=chosen)

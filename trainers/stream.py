"""Streamed: a split too large to pack, whose images are decoded while they are read."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from trainers.dataset import LISTING
from trainers.images import Images, Indices, Pixels, Shape
from trainers.manifest import usable_threads

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class Streamed:
    """A Split that reads ahead in worker threads."""

    name: str
    images: Images
    labels: Indices
    sha256: str

    @classmethod
    def of(cls, name: str, images: Images) -> Streamed:
        """Its hash is over names, sizes and labels, not over pixels."""
        labels = np.ascontiguousarray(images.labels, dtype="<i8")
        digest = hashlib.sha256(images.identity().encode() + labels.tobytes())
        return cls(name=name, images=images, labels=labels, sha256=LISTING + digest.hexdigest())

    @property
    def shape(self) -> Shape:
        return self.images.shape

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: Indices) -> Pixels:
        return self.images.read(indices)

    def stream(self, order: Iterable[Indices]) -> Iterator[Pixels]:
        return ahead(self.images.read, order)


def ahead(work: Callable[[Indices], T], order: Iterable[Indices]) -> Iterator[T]:
    """`map(work, order)` in worker threads, a few calls ahead of the reader, in order."""
    threads = usable_threads()
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        try:
            for item in order:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

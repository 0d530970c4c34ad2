"""Does nothing: its row is the floor of the timing loop itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from export.artifact import Found

formats = ("torch", "onnx")
packages: tuple[str, ...] = ()
options: Mapping[str, tuple[str, ...]] = {}
computes = False


def unusable(device: str) -> str | None:
    return None


class Null:
    """A session without an engine; it returns one zero an image."""

    build_s = 0.0

    def __init__(self, batch: int) -> None:
        self.attested: dict[str, str] = {}
        self._logits = np.zeros((batch, 1), np.float32)

    def bind(self, x: np.ndarray) -> None: ...

    def step(self) -> None: ...

    def sync(self) -> None: ...

    def fetch(self) -> np.ndarray:
        return self._logits

    def close(self) -> None: ...


def load(artifact: Found, *, device: str, threads: int, batch: int, options: Mapping[str, str]) -> Null:
    return Null(batch)

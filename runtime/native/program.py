"""A program: an image of memory that a team of threads runs. It needs numpy and the compiled kernels, nothing else."""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.backend import BackendError
from runtime.native.library import Op

ALIGNED = 64
POINTERS = [getattr(Op, name).offset for name, kind, *_ in Op._fields_ if kind is ctypes.c_void_p]  # where in an op


@dataclass(frozen=True, kw_only=True)
class Image:
    """A network as bytes that can lie anywhere, on disk too: pointers in `ops` are places in `memory`, 0 is none.

    `steps` are the fused steps that the ops belong to; `logits` the output's place, channels and row.
    """

    memory: np.ndarray  # uint8
    ops: np.ndarray  # uint8 [ops, bytes of an op]
    steps: tuple[int, ...]
    batch: int
    threads: int
    logits: tuple[int, int, int]


class Program:
    """An image, ready to run by `kernels`, the compiled library. The image's memory is this program's from then on."""

    def __init__(self, image: Image, kernels: Any) -> None:
        self.threads, self.steps = image.threads, image.steps
        self._memory = image.memory
        assert self._memory.ctypes.data % ALIGNED == 0, "vectors are whole lines of the cache"
        self._ops = image.ops.copy()
        for offset in POINTERS:
            pointers = self._ops[:, offset : offset + 8].view(np.uint64)
            pointers[pointers > 0] += np.uint64(self._memory.ctypes.data)
        place, channels, row = image.logits
        logits = self._memory[place : place + 4 * row * image.batch].view(np.float32)
        self.logits = logits.reshape(image.batch, row)[:, :channels]
        self._team: Any = kernels.native_open(self.threads)
        if not self._team:
            raise BackendError(f"the system gives no {self.threads} threads; ask for fewer")
        self._close = weakref.finalize(self, kernels.native_close, self._team)  # a team forgotten would wait for ever
        self._call = (self._team, self._ops.ctypes.data, len(self._ops), ctypes.POINTER(ctypes.c_int64)())
        self._run = kernels.native_run

    def bind(self, images: np.ndarray) -> None:
        """Let `images`, float32 [batch, channels, height, width] and contiguous, be what the next runs read."""
        self._images = images
        self._ops[0, Op.source.offset : Op.source.offset + 8].view(np.uint64)[0] = images.ctypes.data

    def run(self) -> None:
        self._run(*self._call)

    def profile(self) -> list[float]:
        """Run once; the seconds of each op."""
        times = np.zeros(len(self._ops), np.int64)
        self._run(*self._call[:3], times.ctypes.data_as(ctypes.POINTER(ctypes.c_int64)))
        return [float(time) / 1e9 for time in times]

    def close(self) -> None:
        self._close()

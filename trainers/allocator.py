"""How the process gets its memory: what a step freed is kept for the next instead of being given back."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # glibc, malloc.h
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Make glibc's malloc keep freed memory for the rest of the process; returns whether it does.

    By default every tensor above a few megabytes is mapped when it is made and unmapped when it dies, so each step has
    its pages zeroed by the kernel again: a fifth of a training step on a CPU. Without effect where libc is not glibc.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, NEVER), mallopt(M_ARENA_MAX, 1)])

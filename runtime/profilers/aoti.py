"""A package's profile: the kernels that it calls."""

from __future__ import annotations

from runtime.profilers.eager import take

__all__ = ["take"]

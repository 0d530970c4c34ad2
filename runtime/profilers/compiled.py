"""A compiled module's profile: as the eager one, with the kernels that inductor calls in place of its operators."""

from __future__ import annotations

from runtime.profilers.eager import take

__all__ = ["take"]

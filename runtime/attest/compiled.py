"""What a compiled module executes: the kernels that inductor calls; loops that it wrote itself are not counted."""

from __future__ import annotations

from runtime.attest.eager import attest

__all__ = ["attest"]

"""What a package executes: the kernels that it calls; loops that inductor wrote itself are not counted."""

from __future__ import annotations

from runtime.attest.eager import attest

__all__ = ["attest"]

"""Applied: what one rewrite did to one graph. Nothing here imports onnx: it is part of every record."""

from __future__ import annotations

from trainers.manifest import Struct


class Applied(Struct, frozen=True, kw_only=True):
    """A rewrite, the places it matched, and its proof."""

    name: str
    matched: int
    nodes_before: int
    nodes_after: int
    bytes_before: int
    bytes_after: int
    max_error: float  # largest difference of the outputs on random inputs, in standard deviations of the output

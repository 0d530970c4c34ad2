"""Applied: what one rewrite did to a graph, for the artifact's record."""

from __future__ import annotations

from trainers.manifest import Struct


class Applied(Struct, frozen=True, kw_only=True):
    """One rewrite of one graph; with `matched` 0 the graph was left as it was."""

    name: str
    matched: int  # places
    nodes_before: int
    nodes_after: int
    bytes_before: int
    bytes_after: int
    max_error: float  # largest |difference| of outputs on random inputs, in standard deviations of the output

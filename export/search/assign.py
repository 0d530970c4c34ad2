"""Which layers to quantize: the most time saved within a budget of accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from export.search.records import LayerDamage

Fits = Callable[[frozenset[str]], bool]  # whether an assignment, given by the layers kept, is within the budget


def slower(layers: Sequence[LayerDamage]) -> frozenset[str]:
    """Layers that int8 would slow down: they stay in float."""
    return frozenset(layer.name for layer in layers if layer.saved < 0)


def assign(layers: Sequence[LayerDamage], fits: Fits) -> frozenset[str]:
    """The layers to keep in float.

    Starts from everything in int8. If that is beyond the budget, layers are restored in order of damage by second
    saved; as each restored layer is expected to help, the number of them is found by bisection. Then, as damages do
    not simply add up, each restored layer is put back to int8 where the budget still allows it, those that save most
    first. The assignment returned has been tried itself, unless it keeps every layer.
    """
    start = slower(layers)
    ranked = sorted((layer for layer in layers if layer.name not in start), key=lambda layer: layer.rate, reverse=True)
    count = _fewest(len(ranked), lambda n: fits(start | _names(ranked[:n])))
    kept = start | _names(ranked[:count])
    for layer in sorted(ranked[:count], key=lambda layer: layer.saved, reverse=True):
        if layer.saved > 0 and fits(kept - {layer.name}):
            kept -= {layer.name}
    return kept


def most_trials(layers: int) -> int:
    """How many assignments `assign` may try: for the length of a progress bar."""
    return 1 + math.ceil(math.log2(max(layers, 2))) + layers


def _fewest(count: int, fits: Callable[[int], bool]) -> int:
    """The smallest n in 0 to `count` that fits, by bisection; `count` itself is taken to fit."""
    if fits(0):
        return 0
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _names(layers: Sequence[LayerDamage]) -> frozenset[str]:
    return frozenset(layer.name for layer in layers)

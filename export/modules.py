"""What a PyTorch module is made of, for the record of a torch artifact."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from export.activations import is_gelu

if TYPE_CHECKING:
    from torch import nn

ACTIVE = "float"  # a torch artifact computes in fp32 throughout


def module_types(module: nn.Module) -> dict[str, dict[str, int]]:
    """How many innermost modules there are of each type; `GELU` counts the exact ones alone."""
    counts = Counter(_type(part) for part in module.modules() if not any(part.children()))
    return {name: {ACTIVE: count} for name, count in sorted(counts.items())}


def _type(part: nn.Module) -> str:
    name = type(part).__name__
    return f"{name} approximate" if name == "GELU" and not is_gelu(part) else name

"""Exact rewrites of ONNX graphs: one file each, applied in the order of NAMES."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from export.rewrites.applied import Applied
from trainers import cli

if TYPE_CHECKING:
    import onnx

NAMES: tuple[str, ...] = ()


def default(target: str | None) -> tuple[str, ...]:
    """The rewrites known to help an engine, in order."""
    return NAMES if target else ()


def parse(text: str) -> tuple[str, ...]:
    """`all`, `none` or names with commas. Raises UserError on an unknown name."""
    if text in ("all", "none"):
        return NAMES if text == "all" else ()
    asked = {cli.choose(name, NAMES, "rewrite") for name in text.split(",")}
    return tuple(name for name in NAMES if name in asked)


def rewrite(
    model: onnx.ModelProto, names: Sequence[str], *, seed: int = 0
) -> tuple[onnx.ModelProto, tuple[Applied, ...]]:
    """Apply and prove. Raises CheckFailed naming a rewrite that changed the function."""
    return model, ()

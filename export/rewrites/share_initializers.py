"""Equal initializers, by type, shape and bytes, become one: the file and the loaded model shrink."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common


def apply(model: ir.Model) -> int:
    """Share in place; returns how many initializers went."""
    before = len(model.graph.initializers)
    common.DeduplicateHashedInitializersPass()(model)
    return before - len(model.graph.initializers)

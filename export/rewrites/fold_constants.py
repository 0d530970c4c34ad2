"""Constant folding and tidying, by the passes of onnx_ir and onnxscript: what is left is what runs.

Before: Shape, Gather, Concat, Reshape; Constant; Identity; x * 1; Cast to the type it has; the same node twice.
After:  Reshape with a stored shape; initializers.

Weights behind QuantizeLinear and DequantizeLinear stay quantized.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer
from onnxscript.rewriter import RewritePass, RewriteRule, pattern
from onnxscript.rewriter.rules.common import (
    cast_cast_rule,
    dropout_inference_rule,
    dropout_zero_rule,
    no_op_cast_rule,
    no_op_expand_rule,
    no_op_transpose_rule,
    reshape_reshape_rule,
    transpose_transpose_rule,
)


def _neutral(operator: str, value: float) -> RewriteRule:
    """`x operator value` as x. The library's own rules take 1e-8 for 0, which stands below many a division."""
    constant = pattern.Constant(value, rel_tol=0.0, abs_tol=0.0)

    def match(op: Any, x: Any) -> Any:
        return getattr(op, operator)(x, constant)

    def replacement(op: Any, x: Any, **_: Any) -> Any:
        return op.Identity(x)

    return RewriteRule(match, replacement)


RULES = [
    *_neutral("Mul", 1.0).commute(),
    *_neutral("Add", 0.0).commute(),
    _neutral("Sub", 0.0),
    _neutral("Div", 1.0),
    dropout_zero_rule,
    dropout_inference_rule,
    no_op_cast_rule,
    cast_cast_rule,
    no_op_expand_rule,
    no_op_transpose_rule,
    transpose_transpose_rule,
    reshape_reshape_rule,
]
SHRINKING = {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"}  # results as large as their input


def apply(model: ir.Model) -> int:
    """Fold in place; returns by how many nodes and unused initializers the graph shrank."""
    before = _size(model)
    for change in (
        common.InlinePass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        RewritePass(RULES),
        _fold,
        RewritePass(RULES),
        _drop_identities,
        common.CommonSubexpressionEliminationPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
    ):
        change(model)
    return max(before - _size(model), 0)


def _fold(model: ir.Model) -> None:
    optimizer.fold_constants_ir(model, should_fold=lambda node: node.op_type in SHRINKING or None)


def _drop_identities(model: ir.Model) -> None:
    """Not below an If or a Loop: the library would let a body return a value of the graph around it."""
    if not any(isinstance(held.value, ir.Graph) for node in model.graph for held in node.attributes.values()):
        common.IdentityEliminationPass()(model)


def _size(model: ir.Model) -> int:
    """Nodes, and the initializers that none of them reads."""
    graph = model.graph
    unused = sum(not (value.uses() or value.is_graph_output()) for value in graph.initializers.values())
    return len(list(graph.all_nodes())) + unused

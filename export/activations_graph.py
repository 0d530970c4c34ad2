"""Swapping GELU in an ONNX graph, for files whose module is not at hand.

What stands in is exported by itself, by the dynamo exporter at the graph's own opset, put in as a function at every
place, and inlined: so the module of `export/activations.py` is the only definition there is.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedNodesPass, ShapeInferencePass
from onnxscript.rewriter import pattern

from export.activations import EXACT, make, shown
from export.quiet import quiet
from trainers.manifest import UserError

if TYPE_CHECKING:
    import onnx
    from torch import nn

DOMAIN = "fastform.activations"
CLOSE = 1e-3  # relative: constants of a graph in fp16 have three digits
USUAL_RANK = 4  # of an input whose shape the graph does not tell: (N, C, H, W)


def swap_in_graph(model: onnx.ModelProto, name: str) -> tuple[onnx.ModelProto, int]:
    """A copy of the model with every exact GELU replaced by this activation, and how many there were.

    A GELU is one Gelu operator, or the five operators around Erf that it decomposes to below opset 20. Raises UserError
    when there is none, or when the activation cannot be written at the model's opset.
    """
    if name == EXACT:
        return model, 0
    swapped, count = replace_gelu(model, make(name))
    if not count:
        raise UserError(f"--gelu {shown(name)}: this graph has no exact GELU, neither as one operator nor around Erf; "
                        "leave --gelu out")  # fmt: skip
    return swapped, count


def replace_gelu(model: onnx.ModelProto, module: nn.Module) -> tuple[onnx.ModelProto, int]:
    """A copy of the model with this elementwise module in every exact GELU's place, and how many there were."""
    graph = ir.serde.deserialize_model(model)
    opset = graph.opset_imports.get("", 1)
    ShapeInferencePass()(graph)
    functions: dict[ir.OperatorIdentifier, ir.Function] = {}

    def call(op: Any, x: ir.Value, **_: Any) -> Any:
        rank, kind = USUAL_RANK if x.shape is None else len(x.shape), x.dtype or ir.DataType.FLOAT
        identity = (DOMAIN, f"activation_{rank}d_{kind.name.lower()}", "")
        if identity not in functions:
            functions[identity] = _function(identity, module, rank, kind, opset)
        return getattr(op, identity[1])(x, _domain=DOMAIN, _version=1)

    count = pattern.RewriteRuleSet(_rules(call), commute=True).apply_to_model(graph)
    graph.functions.update(functions)
    graph.opset_imports.setdefault(DOMAIN, 1)
    InlinePass()(graph)
    RemoveUnusedNodesPass()(graph)
    graph.opset_imports.pop(DOMAIN, None)
    return ir.serde.serialize_model(graph), count


def _rules(call: Callable[..., Any]) -> list[pattern.RewriteRule]:
    """GELU as it is found in graphs: x Φ(x), Φ(x) = (1 + erf(x / √2)) / 2, with the three factors in any order."""
    half, one = pattern.Constant(0.5, rel_tol=CLOSE), pattern.Constant(1.0, rel_tol=CLOSE)

    def by_quotient(op: Any, x: Any) -> Any:
        return op.Add(op.Erf(op.Div(x, pattern.Constant(math.sqrt(2), rel_tol=CLOSE))), one)

    def by_product(op: Any, x: Any) -> Any:
        return op.Add(op.Erf(op.Mul(x, pattern.Constant(math.sqrt(0.5), rel_tol=CLOSE))), one)

    orders: list[Callable[..., Any]] = [
        lambda op, x, twice: op.Mul(op.Mul(x, twice), half),
        lambda op, x, twice: op.Mul(x, op.Mul(twice, half)),
        lambda op, x, twice: op.Mul(op.Mul(x, half), twice),
    ]
    patterns = [_pattern(order, twice) for twice in (by_quotient, by_product) for order in orders]
    patterns += [
        lambda op, x: op.Gelu(x, _outputs=["y"]),
        lambda op, x: op.Gelu(x, _domain="com.microsoft", _outputs=["y"]),
    ]
    return [pattern.RewriteRule(each, call, _is_exact) for each in patterns]


def _pattern(order: Callable[..., Any], twice: Callable[..., Any]) -> Callable[..., Any]:
    return lambda op, x: order(op, x, twice(op, x))


def _is_exact(context: Any, x: ir.Value, y: ir.Value | None = None, **_: Any) -> bool:
    """Whether a Gelu operator, if it is one, is not an approximation already."""
    if y is None:
        return True
    node = y.producer()
    assert node is not None, "the pattern's output is a node's"
    approximate = node.attributes.get("approximate")
    return approximate is None or approximate.as_string() == "none"


def _function(
    identity: ir.OperatorIdentifier, module: nn.Module, rank: int, kind: ir.DataType, opset: int
) -> ir.Function:
    """The module as an ONNX function of one tensor. Raises UserError when it cannot be exported at this opset."""
    import torch

    example = torch.zeros([2] * rank, dtype=cast(torch.dtype, getattr(torch, _torch_name(kind))))
    free = dict.fromkeys(range(rank), torch.export.Dim.DYNAMIC)
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                copy.deepcopy(module).eval(), (example,), dynamo=True, opset_version=opset, verbose=False,
                dynamic_shapes=(free,),
            )  # fmt: skip
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"the activation cannot be written at opset {opset}: {reason}; give another --gelu") from error
    assert program is not None, "torch.onnx.export returns a program when it is given no file"
    written = program.model.opset_imports.get("", 1)
    if written != opset:
        raise UserError(f"the activation can be written at opset {written}, the graph has {opset}; convert the graph")
    return _closed(identity, program.model)


def _closed(identity: ir.OperatorIdentifier, model: ir.Model) -> ir.Function:
    """A model's graph as a function: what it held as initializers, which functions have none of, become nodes."""
    InlinePass()(model)
    graph = model.graph
    for value in list(graph.initializers.values()):
        assert value.const_value is not None, "the exporter writes constants with their values"
        node = ir.node("Constant", [], {"value": value.const_value})
        value.replace_all_uses_with(node.outputs[0])
        graph.insert_before(graph[0], node)
    graph.initializers.clear()
    for node in graph:
        node.metadata_props.clear()  # the exporter's places are not the model's
    return ir.Function(*identity, graph=graph, attributes=[])


def _torch_name(kind: ir.DataType) -> str:
    return {"FLOAT": "float32", "FLOAT16": "float16", "BFLOAT16": "bfloat16", "DOUBLE": "float64"}[kind.name]

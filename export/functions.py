"""Activations as ONNX local functions: one box a module in a viewer, and its operators inside.

    x -> Mul(1.702) -> Sigmoid -> Mul(x) -> y        becomes        x -> SigmoidGELU -> y

Both exporters say which module a node comes from: dynamo in its metadata, TorchScript in its name.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from trainers.manifest import PROGRAM

if TYPE_CHECKING:
    import onnx
    from torch import nn

DOMAIN = f"{PROGRAM}.functions"
SCOPES = "pkg.torch.onnx.name_scopes"  # dynamo: a list of module paths, from the model to the node


def activations(module: nn.Module) -> dict[str, str]:
    """Path and class of each module without parts and weights of its own that is a GELU or not one of PyTorch's."""
    from torch import nn

    return {
        path: type(part).__name__
        for path, part in module.named_modules()
        if not [*part.children(), *part.parameters(), *part.buffers()]
        and (isinstance(part, nn.GELU) or not type(part).__module__.startswith("torch."))
    }


def outline(model: onnx.ModelProto, modules: Mapping[str, str]) -> int:
    """Move the operators of each of `modules` (path to class) into a function, in place; returns how many modules.

    A module that is a single operator stays as it is. So does one whose operators something else stands between, as
    quantization's pairs do.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index, node in enumerate(model.graph.node):
        path = module_path(node)
        if path in modules:
            groups[path].append(index)
    bodies: dict[bytes, str] = {}
    calls: dict[int, onnx.NodeProto] = {}
    moved: set[int] = set()
    for path, group in groups.items():
        call = _call(model, group, path, modules[path], bodies)
        if call is not None:
            calls[group[-1]] = call
            moved.update(group)
    if calls:
        _replace(model, calls, moved)
    return len(calls)


def module_path(node: onnx.NodeProto) -> str:
    """The path of the module that a node comes from; empty where the file does not say.

    TorchScript's `/features/features.3/gelu/Mul` is `features.3.gelu`: a Sequential's part repeats its parent's path.
    """
    for entry in node.metadata_props:
        if entry.key == SCOPES:
            return str(ast.literal_eval(entry.value)[-2])
    path: list[str] = []
    for part in node.name.split("/")[1:-1]:
        if path and part.startswith(f"{path[-1]}."):
            path.pop()
        path.append(part)
    return ".".join(path)


def _call(
    model: onnx.ModelProto, group: list[int], path: str, kind: str, bodies: dict[bytes, str]
) -> onnx.NodeProto | None:
    """The node that calls the group's function, which is added unless another module has the same; None if it stays."""
    import onnx

    nodes = [model.graph.node[index] for index in group]
    if sum(node.op_type not in ("Constant", "Identity") for node in nodes) < 2:
        return None
    made = [name for node in nodes for name in node.output]
    used = _used_outside(model, set(group))
    outputs = [name for name in made if name in used]
    constants = _scalars(model, nodes)
    taken = dict.fromkeys(name for node in nodes for name in node.input if name and name not in made)
    inputs = [name for name in taken if name not in constants]
    if any(used[name] < group[-1] for name in outputs) or _between(model, group, made):
        return None
    function = _function(kind, [*constants.values(), *nodes], inputs, outputs, model)
    body = function.SerializeToString(deterministic=True)
    if body not in bodies:
        twins = sum(name.partition("_")[0] == kind for name in bodies.values())
        bodies[body] = function.name = kind if not twins else f"{kind}_{twins + 1}"
        model.functions.append(function)
    return onnx.helper.make_node(bodies[body], inputs, outputs, name=path, domain=DOMAIN)


def _used_outside(model: onnx.ModelProto, group: set[int]) -> dict[str, int]:
    """The first node outside the group that takes each value; the graph's outputs come after all nodes."""
    used = {value.name: len(model.graph.node) for value in model.graph.output}
    for index in reversed(range(len(model.graph.node))):
        if index not in group:
            used.update(dict.fromkeys(model.graph.node[index].input, index))
    return used


def _between(model: onnx.ModelProto, group: list[int], made: list[str]) -> bool:
    """Whether the group takes something that is computed from it outside."""
    reached = set(made)
    for index in range(group[0], group[-1] + 1):
        node = model.graph.node[index]
        if index not in group and reached & set(node.input):
            reached |= set(node.output)
    return any(name in reached and name not in made for index in group for name in model.graph.node[index].input)


def _scalars(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> dict[str, onnx.NodeProto]:
    """Initializers of one element that the nodes take, as nodes: a function has no initializers."""
    import onnx

    taken = {name for node in nodes for name in node.input}
    found = {}
    for tensor in model.graph.initializer:
        if tensor.name in taken and all(size == 1 for size in tensor.dims):
            value = onnx.TensorProto()
            value.CopyFrom(tensor)
            value.ClearField("name")
            found[tensor.name] = onnx.helper.make_node("Constant", [], [tensor.name], value=value)
    return found


def _function(
    kind: str, nodes: list[onnx.NodeProto], inputs: list[str], outputs: list[str], model: onnx.ModelProto
) -> onnx.FunctionProto:
    """The nodes with names of their own, so that equal modules are equal functions."""
    import onnx

    names = {name: f"x{number or ''}" for number, name in enumerate(inputs)}
    names |= {name: f"y{number or ''}" for number, name in enumerate(outputs)}
    inner = (name for node in nodes for name in node.output if name not in names)
    names |= {name: f"v{number}" for number, name in enumerate(dict.fromkeys(inner))}
    body = []
    for node in nodes:
        bare = onnx.helper.make_node(
            node.op_type, [names.get(n, n) for n in node.input], [names[n] for n in node.output], domain=node.domain
        )
        bare.attribute.extend(node.attribute)
        body.append(bare)
    return onnx.helper.make_function(
        DOMAIN, kind, [names[n] for n in inputs], [names[n] for n in outputs], body, list(model.opset_import)
    )


def _replace(model: onnx.ModelProto, calls: Mapping[int, onnx.NodeProto], moved: set[int]) -> None:
    """Put the calls where the last of their nodes were, and drop what nothing uses any more."""
    import onnx

    nodes = [calls.get(i, node) for i, node in enumerate(model.graph.node) if i in calls or i not in moved]
    kept = {name for node in nodes for name in (*node.input, *node.output)}
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in kept]
    values = [value for value in model.graph.value_info if value.name in kept]
    for field, left in (("node", nodes), ("initializer", tensors), ("value_info", values)):
        copies = [type(part).FromString(part.SerializeToString()) for part in left]
        del getattr(model.graph, field)[:]
        getattr(model.graph, field).extend(copies)
    model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))

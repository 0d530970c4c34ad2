"""Which node of an fp32 file a node of its prepared form stands for.

ONNX Runtime's preparation keeps the names of most nodes; those that it fuses, splits or moves get new ones.
"""

from __future__ import annotations

from collections import Counter

import onnx


def counterparts(prepared: onnx.GraphProto, source: onnx.GraphProto) -> dict[str, str | None]:
    """The source's node for each prepared node, by name: the one of the same name, weight or output.

    None where there is no such node or more than one: a wrong name would be worse than none.
    """
    by_name = {node.name: node for node in source.node if node.name}
    readers = Counter(name for node in source.node for name in node.input[1:2])
    by_weight = {node.input[1]: node.name for node in source.node if len(node.input) > 1}
    by_output = {name: node for node in source.node for name in node.output}
    stored = {tensor.name for tensor in prepared.initializer} & {tensor.name for tensor in source.initializer}

    def find(node: onnx.NodeProto) -> str | None:
        if node.name in by_name and by_name[node.name].op_type == node.op_type:
            return node.name
        weight = node.input[1] if len(node.input) > 1 else ""
        if weight in stored and readers[weight] == 1:
            return by_weight[weight] or None
        same = by_output.get(node.output[0])
        return same.name or None if same is not None and same.op_type == node.op_type else None

    return {node.name: find(node) for node in prepared.node}

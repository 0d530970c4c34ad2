"""Reading and finishing ONNX files: signature, metadata, and which types the weights really have."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import onnx

from export.artifact import Tensor
from export.pixels import PREFIX
from trainers.checkpoint import Checkpoint
from trainers.manifest import CheckFailed

STACK_TRACE = "pkg.torch.onnx.stack_trace"  # source paths of the machine that exported, one a node


def finish(path: Path, name: str, checkpoint: Checkpoint) -> onnx.ModelProto:
    """Write the essentials into the file's metadata, drop what tells of this machine, and check it in full.

    Raises CheckFailed with the checker's reason.
    """
    model = onnx.load(path, load_external_data=False)  # weights beside the file stay where they are
    _strip(model.graph)
    for function in model.functions:
        _strip(function)
    kept = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**kept, **essentials(name, checkpoint)})
    onnx.save(model, path)
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CheckFailed(f"{name}: onnx.checker refuses the file: {str(error).splitlines()[0]}") from error
    return model


def opset(path: Path) -> int:
    """The version of the ONNX operators that a file is written in."""
    imports = onnx.load(path, load_external_data=False).opset_import
    return next(one.version for one in imports if one.domain in ("", "ai.onnx"))


def essentials(name: str, checkpoint: Checkpoint) -> dict[str, str]:
    """What a file says of itself when it is found without its record."""
    preprocess = checkpoint.preprocess
    return {
        "name": name,
        "model": checkpoint.model,
        "checkpoint_sha256": checkpoint.weights.sha256,
        "preprocess": json.dumps({field: getattr(preprocess, field) for field in preprocess.__struct_fields__}),
        "classes": json.dumps(checkpoint.classes),
        "data": checkpoint.data.name,
    }


def signature(model: onnx.ModelProto) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The graph's inputs and outputs."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_tensor(value) for value in model.graph.input if value.name not in weights)
    return inputs, tuple(_tensor(value) for value in model.graph.output)


def weight_types(model: onnx.ModelProto) -> dict[str, dict[str, int]]:
    """How many nodes of each operator hold a weight of each type, seen through Q/DQ pairs and casts."""
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    passing = {"QuantizeLinear", "DequantizeLinear", "Cast"}
    for node in model.graph.node:
        if node.op_type in passing and node.input[0] in stored:
            stored[node.output[0]] = stored[node.input[0]]
    for node in model.graph.node:
        if node.name.startswith(PREFIX):  # numbers of the preprocessing
            continue
        if node.op_type in passing or len(node.input) < 2 or node.input[1] not in stored:
            continue
        kind = onnx.TensorProto.DataType.Name(stored[node.input[1]]).lower()
        if kind != "int64":  # shapes and axes are no weights
            counts[node.op_type][kind] += 1
    return {op: dict(kinds) for op, kinds in sorted(counts.items())}


def _strip(graph: onnx.GraphProto | onnx.FunctionProto) -> None:
    for node in graph.node:
        for index in reversed(range(len(node.metadata_props))):
            if node.metadata_props[index].key == STACK_TRACE:
                del node.metadata_props[index]


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    kind = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
    return Tensor(name=value.name, dtype=onnx.TensorProto.DataType.Name(kind.elem_type).lower(), shape=shape)

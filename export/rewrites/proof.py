"""The proof of a rewrite: the graph before and after, run on the same random inputs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from trainers.manifest import CheckFailed, UserError

# Of the output's standard deviation. Rounding in float32 stays one to two powers of ten below it in deep networks; a
# wrong permutation, constant or window lies three above.
TOLERANCE = 1e-4
BATCHES = (1, 3)  # where the batch is free: the two may take different kernels of the engine

Inputs = dict[str, np.ndarray]
Outputs = list[np.ndarray]


class Proof:
    """Random inputs and what the latest graph makes of them; `advance` goes from one graph to the next."""

    def __init__(self, model: onnx.ModelProto, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.inputs = [draw(model.graph, batch, generator) for batch in _batches(model.graph)]
        self.outputs = self._run(model, "before any rewrite")

    def advance(self, name: str, model: onnx.ModelProto) -> float:
        """The largest error of this graph against the one before, in deviations of the output; it then takes its place.

        Raises CheckFailed naming the rewrite when that is beyond TOLERANCE, when outputs do not vary or are not finite,
        or when onnx.checker or ONNX Runtime refuses the graph.
        """
        _validate(name, model)
        before, self.outputs = self.outputs, self._run(model, name)
        worst = max(_error(name, a, b) for a, b in zip(_joined(before), _joined(self.outputs), strict=True))
        if not worst <= TOLERANCE:
            raise CheckFailed(f"{name}: outputs change by {worst:.2g} of their deviation, more than {TOLERANCE:g}")
        return worst

    def _run(self, model: onnx.ModelProto, name: str) -> list[Outputs]:
        """The outputs for each of the inputs; ONNX Runtime's own rewrites are off: they would hide what ours did."""
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as errors

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
            return [session.run(None, inputs) for inputs in self.inputs]
        except (errors.Fail, errors.InvalidGraph, errors.NotImplemented, errors.RuntimeException) as error:
            raise CheckFailed(f"{name}: ONNX Runtime cannot run the graph: {str(error).splitlines()[0]}") from error


def _validate(name: str, model: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CheckFailed(f"{name}: onnx.checker refuses the graph: {str(error).splitlines()[0]}") from error


def _joined(runs: list[Outputs]) -> list[Outputs]:
    """Each output of the graph, in all runs."""
    return [list(output) for output in zip(*runs, strict=True)]


def _error(name: str, before: Outputs, after: Outputs) -> float:
    """The largest difference of one output over all runs, in its deviation over all runs."""
    shapes = [[(found.shape, found.dtype.name) for found in runs] for runs in (before, after)]
    if shapes[0] != shapes[1]:
        raise CheckFailed(f"{name}: an output of shape {before[0].shape} became one of shape {after[0].shape}")
    a, b = (np.concatenate([found.ravel() for found in runs]).astype(np.float64) for runs in (before, after))
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise CheckFailed(f"{name}: the graph's output on random inputs is not finite, so nothing can be compared")
    if not a.std():
        raise CheckFailed(f"{name}: the graph's output does not vary on random inputs, so agreement means nothing")
    return float(np.abs(a - b).max() / a.std())


def _inputs(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    weights = {tensor.name for tensor in graph.initializer}
    return (value for value in graph.input if value.name not in weights)


def _batches(graph: onnx.GraphProto) -> tuple[int, ...]:
    """The first dimension of each run; where it is fixed, the graph's own stands in for it."""
    firsts = [value.type.tensor_type.shape.dim[:1] for value in _inputs(graph)]
    free = any(dim and not dim[0].HasField("dim_value") for dim in firsts)
    return BATCHES if free else (1, 1)


def draw(graph: onnx.GraphProto, batch: int, generator: np.random.Generator) -> Inputs:
    """Standard normal floating-point inputs, uniform 8-bit ones. Raises UserError for what cannot be drawn."""
    drawn = {}
    for value in _inputs(graph):
        kind = value.type.tensor_type
        shape = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
        if None in shape[1:] or not shape:
            raise UserError(
                f"input {value.name} has free dimensions besides its batch; export it with a fixed image size"
            )
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        sizes = [shape[0] or batch, *(size or 0 for size in shape[1:])]
        if dtype == np.uint8:
            drawn[value.name] = generator.integers(0, 256, sizes, dtype=np.uint8)
        elif dtype in (np.float16, np.float32, np.float64):
            drawn[value.name] = generator.standard_normal(sizes).astype(dtype)
        else:
            raise UserError(f"input {value.name} is {dtype}; rewrites are proved on floating-point and uint8 images")
    return drawn

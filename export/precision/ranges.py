"""Activation ranges for quantization, observed over the calibration images in one pass and bounded memory.

The graph itself reduces every activation to its smallest and largest value and to a thinned-out sample, so that no
whole activation ever leaves the engine; of the samples only a histogram is kept.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from trainers.manifest import CheckFailed

BINS = 4096  # of a histogram from -reach to +reach
LEVELS = 128  # magnitudes that int8 tells apart
STRIDE = 8  # bins between two thresholds that `entropy` tries
PERCENT = 99.99  # of the values below the upper end of a range, and above the lower one
SAMPLE = 8192  # values an image that a histogram takes of an activation
PLAIN = {TensorProto.FLOAT, TensorProto.FLOAT16}


@dataclass(kw_only=True)
class Observed:
    """What was seen of one activation. The histogram's `reach` is a power of two and grows by merging bins."""

    low: float = math.inf
    high: float = -math.inf
    reach: float = 2.0**-20
    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def update(self, low: float, high: float, sample: np.ndarray | None) -> None:
        """Take in one batch."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        if sample is None:
            return
        while self.reach <= max(-low, high):
            half = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.pad(half, BINS // 4)
            self.reach *= 2
        bins = ((sample + self.reach) * (BINS / (2 * self.reach))).astype(np.int64)
        self.counts += np.bincount(np.minimum(bins, BINS - 1), minlength=BINS)

    def range(self, method: str) -> tuple[float, float]:
        """(low, high) of the values worth telling apart; what lies outside will saturate."""
        if method == "minmax":
            return self.low, self.high
        if method == "entropy":
            threshold = self.reach * entropy_threshold(self.counts[BINS // 2 :] + self.counts[BINS // 2 - 1 :: -1])
            return max(self.low, -threshold), min(self.high, threshold)
        share = self.counts.cumsum() / self.counts.sum()
        edges = np.linspace(-self.reach, self.reach, BINS + 1)
        low = edges[np.searchsorted(share, 1 - PERCENT / 100, side="right")]
        high = edges[np.searchsorted(share, PERCENT / 100) + 1]
        return max(self.low, float(low)), min(self.high, float(high))


def entropy_threshold(magnitudes: np.ndarray) -> float:
    """Where to clip, as a share of the histogram's width, so that LEVELS levels lose the least information.

    For each threshold the clipped histogram P is compared with Q, the same in LEVELS levels spread evenly over the bins
    that are not empty; the smallest Kullback-Leibler divergence of Q from P wins (Migacz, "8-bit Inference with
    TensorRT", 2017).
    """
    counts = magnitudes.astype(np.float64)
    counts[0] = counts[1]  # the zeros that a ReLU makes are exact at any scale, and would outweigh all else
    divergences = {stop: _divergence(counts, stop) for stop in range(LEVELS, len(counts) + 1, STRIDE)}
    return min(divergences, key=lambda stop: divergences[stop]) / len(counts)


def _divergence(counts: np.ndarray, stop: int) -> float:
    inside = counts[:stop]
    expected = inside.copy()
    expected[-1] += counts[stop:].sum()
    level = np.arange(stop) * LEVELS // stop
    filled = np.maximum(np.bincount(level, inside > 0), 1)
    spread = np.where(inside > 0, (np.bincount(level, inside) / filled)[level], 0)
    here = expected > 0
    if not here.any() or (spread[here] == 0).any():
        return math.inf
    p, q = expected[here] / expected.sum(), spread[here] / spread.sum()
    return float((p * np.log(p / q)).sum())


def observe(
    model: onnx.ModelProto, tensors: Sequence[str], images: Iterable[np.ndarray], histograms: bool
) -> dict[str, Observed]:
    """Run the images through the graph and describe the activations named. Changes `model`.

    Raises CheckFailed naming an activation that is not finite; names one that never changes on stderr.
    """
    from export.engines import each, session, share

    observed = {name: Observed() for name in tensors}
    # ONNX Runtime begins with what leads to the last node. Were that the deepest activation, all the others would be
    # computed on the way and held until their own turn to be reduced.
    reduced = {name: tuple(_reduced(model, name, histograms)) for name in reversed(tensors)}
    outputs = [output for name in tensors for output in reduced[name]]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "observed.onnx"
        onnx.save(model, path)
        loaded = session(path, threads=share())
    name = loaded.get_inputs()[0].name
    for found in each(lambda batch: loaded.run(outputs, {name: batch}), images):
        values = iter(found)
        for tensor, seen in observed.items():
            low, high = float(next(values)), float(next(values))
            if not (math.isfinite(low) and math.isfinite(high)):
                raise CheckFailed(f"the activation {tensor} is not finite on the calibration images")
            seen.update(low, high, next(values) if histograms else None)
    flat = [tensor for tensor, seen in observed.items() if seen.low == seen.high]
    if flat:
        print(f"note: constant on all calibration images: {', '.join(flat)}", file=sys.stderr)
    return observed


def activations(model: onnx.ModelProto, operators: Sequence[str], kept: Sequence[str], outputs: bool) -> list[str]:
    """The floating-point activations that nodes of these operators read and, if asked, write; in the graph's order."""
    infos = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    kinds = {info.name: info.type.tensor_type.elem_type for info in infos}
    stored = {tensor.name for tensor in model.graph.initializer}
    touched = (
        name
        for node in model.graph.node
        if node.op_type in operators and node.name not in kept
        for name in (*node.input, *(node.output if outputs else ()))
    )
    return list(dict.fromkeys(name for name in touched if name not in stored and kinds.get(name) in PLAIN))


def _reduced(model: onnx.ModelProto, tensor: str, histograms: bool) -> Iterator[str]:
    """Append the nodes that reduce one activation; yields the names of the outputs that they make."""
    graph = model.graph
    for operator in ("ReduceMin", "ReduceMax"):
        output = f"{tensor}/{operator}"
        graph.node.append(helper.make_node(operator, [tensor], [output], keepdims=0))
        graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, []))
        yield output
    if histograms:
        yield from _sampled(graph, tensor)


def _sampled(graph: onnx.GraphProto, tensor: str) -> Iterator[str]:
    """Every n-th value of the flattened activation; n is odd, or it would always meet the same columns."""
    infos = {info.name: info for info in (*graph.input, *graph.value_info, *graph.output)}
    shape = infos[tensor].type.tensor_type.shape.dim[1:]
    step = math.prod(max(dim.dim_value, 1) for dim in shape) // SAMPLE | 1
    numbers = {"shape": [-1], "start": [0], "end": [np.iinfo(np.int64).max], "axes": [0], "step": [step]}
    for part, values in numbers.items():
        graph.initializer.append(helper.make_tensor(f"{tensor}/{part}", TensorProto.INT64, [1], values))
    flat, output = f"{tensor}/flat", f"{tensor}/sample"
    graph.node.append(helper.make_node("Reshape", [tensor, f"{tensor}/shape"], [flat]))
    parts = [f"{tensor}/{part}" for part in ("start", "end", "axes", "step")]
    graph.node.append(helper.make_node("Slice", [flat, *parts], [output]))
    graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, [None]))
    yield output

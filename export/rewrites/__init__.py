"""Exact rewrites of ONNX graphs: the same function, in fewer or better-suited operators and fewer bytes.

Each is a module here with `apply(model)`, which changes an onnx_ir model in place and returns in how many places; its
row below, in the order of application, is all that the command line and the contract tests know. `rewrite` applies
them to a file's graph and proves each by running the graph before and after.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from export.quiet import quiet
from export.rewrites.applied import Applied
from trainers.cli import choose

if TYPE_CHECKING:
    import onnx

TARGETS = ("cpu", "openvino", "tensorrt")


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    """A row of the table. `apply` returns a new model and the number of places; with none, the model it was given."""

    name: str  # the command line's, and the module's with `_` for `-`
    summary: str
    targets: tuple[str, ...]  # the engines that it is known to help, in speed or size: those it is a default of
    apply: Callable[[onnx.ModelProto], tuple[onnx.ModelProto, int]]
    opset: int = 0  # that its operators need: a file below it is raised to it


def _row(name: str, summary: str, targets: tuple[str, ...], opset: int = 0) -> tuple[str, Rewrite]:
    apply = partial(_apply, name.replace("-", "_"))
    return name, Rewrite(name=name, summary=summary, targets=targets, apply=apply, opset=opset)


def _apply(module: str, model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    from export.rewrites import nodes

    with quiet():
        graph = nodes.read(model)
        matched: int = importlib.import_module(f"{__name__}.{module}").apply(graph)
        return (nodes.write(graph), matched) if matched else (model, 0)


REWRITES: dict[str, Rewrite] = dict(
    (
        _row("fold-constants", "compute what is constant, drop what does nothing or is not used", TARGETS),
        _row("fold-batchnorm", "BatchNormalization into the weights of the convolution or Gemm before it", TARGETS),
        _row("fuse-gelu", "the arithmetic of a GELU into one Gelu operator", TARGETS, 20),
        _row("fuse-layernorm", "the arithmetic of a LayerNorm into one LayerNormalization operator", TARGETS, 17),
        _row("depthwise-split", "a widening depthwise convolution into plain depthwise ones", ("cpu", "openvino")),
        _row("dead-taps", "crop kernel taps that only ever meet padding at this input size", TARGETS),
        _row("share-initializers", "equal weights are stored once", TARGETS),
    )
)
NAMES = tuple(REWRITES)


def get(name: str) -> Rewrite:
    """The rewrite of this name. Raises UserError with the nearest known name."""
    return REWRITES[choose(name, NAMES, "rewrite")]


def default(target: str | None) -> tuple[str, ...]:
    """The rewrites known to help this engine; without one (a file for all), those known to help every engine."""
    wanted = set(TARGETS) if target is None else {target}
    return tuple(name for name, row in REWRITES.items() if wanted <= set(row.targets))


def parse(text: str) -> tuple[str, ...]:
    """`all`, `none` or a comma list as names in the order of application. Raises UserError on an unknown name."""
    if text in ("all", "none"):
        return NAMES if text == "all" else ()
    asked = {get(name.strip()).name for name in text.split(",")}
    return tuple(name for name in NAMES if name in asked)


def rewrite(
    model: onnx.ModelProto, names: Sequence[str], *, seed: int = 0
) -> tuple[onnx.ModelProto, tuple[Applied, ...]]:
    """Apply the named rewrites in the order given and prove each: the outputs before and after are compared.

    `model` itself is left as it was. Raises CheckFailed naming the rewrite whose graph computes something else or is
    not valid ONNX, UserError for an unknown name or a graph whose inputs cannot be drawn at random.
    """
    from export.rewrites.proof import Proof

    proof: Proof | None = None
    size, steps = model.ByteSize(), []
    for name in names:
        after, matched = get(name).apply(model)
        new_size, error = size, 0.0
        if matched:
            proof = proof or Proof(model, seed)
            new_size, error = after.ByteSize(), proof.advance(name, after)
        steps.append(
            Applied(
                name=name,
                matched=matched,
                nodes_before=len(model.graph.node),
                nodes_after=len(after.graph.node),
                bytes_before=size,
                bytes_after=new_size,
                max_error=error,
            )
        )
        model, size = after, new_size
    return model, tuple(steps)

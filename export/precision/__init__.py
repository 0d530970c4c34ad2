"""Precisions: what `--quantize` can make of a verified fp32 ONNX file, and how close it must stay to PyTorch.

Each conversion is a module here with `convert(source, destination, conversion)`; its row below is all that the
command line, the plan and the contract tests know. A checkpoint trained with `--qat` has a row of its own.
"""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.manifest import CheckFailed, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Beyond any of these an artifact is failed; None is not judged.

    `error`: the largest absolute logit error, in standard deviations of PyTorch's logits. `cosine`: the mean cosine
    between logit vectors. `drop`: percentage points of top-1, failed when the whole 95% interval lies above it.
    """

    error: float | None = None
    cosine: float | None = None
    drop: float | None = None


@dataclass(frozen=True, kw_only=True)
class Precision:
    """A row of the table: which module converts, whether it needs images, and what is judged."""

    module: str | None  # None: what the exporter writes
    tolerance: Tolerance
    calibrated: bool = False
    targets: tuple[str, ...] = ()  # engines it can be placed for; empty: one form for all
    trained: bool = False  # the one form of a checkpoint that was trained with `--qat`, and of no other
    operators: tuple[str, ...] = ("Conv", "Gemm", "MatMul")  # those that hold the precision; all others are `rest`
    rest: str = "fp32"
    opset: int = 0  # the first in which its operators take it
    size_ratio: float = 1.0  # expected bytes per fp32 byte of a convolution, for the plan
    rest_ratio: float = 1.0  # and of everything else
    graph: str = "all"  # how far ONNX Runtime may optimise: all, extended, basic
    disabled: tuple[str, ...] = ()  # ONNX Runtime's optimisers that compute this precision wrongly


METHODS = ("minmax", "entropy", "percentile")  # of setting activation ranges
AUTO = "auto"  # each of them is tried
OPENVINO = "openvino"  # the target whose files are OpenVINO's own

PRECISIONS: dict[str, Precision] = {
    "fp32": Precision(module=None, tolerance=Tolerance(error=2e-3)),
    "fp16": Precision(
        module="fp16", tolerance=Tolerance(error=0.1, cosine=0.9995), rest="fp16", size_ratio=0.5, rest_ratio=0.5
    ),
    "bf16": Precision(
        module="bf16",
        tolerance=Tolerance(error=0.3, cosine=0.998),
        rest="bf16",
        opset=22,
        size_ratio=0.5,
        rest_ratio=0.5,
    ),
    "int8": Precision(
        module="int8",
        tolerance=Tolerance(cosine=0.98, drop=1.0),
        calibrated=True,
        targets=("cpu", "tensorrt", OPENVINO),
        operators=("Conv", "Gemm", "MatMul", "Convolution"),
        size_ratio=0.25,
    ),
    "int8-fp16": Precision(
        module="int8_fp16",
        tolerance=Tolerance(cosine=0.98, drop=1.0),
        calibrated=True,
        targets=("tensorrt",),
        rest="fp16",
        opset=19,  # DequantizeLinear's half scales
        size_ratio=0.25,
        rest_ratio=0.5,
        disabled=("WeightBiasQuantization",),  # quantizes half biases with scales that it misreads
    ),
    "fp8": Precision(
        module="fp8",
        opset=19,  # QuantizeLinear's
        tolerance=Tolerance(cosine=0.98, drop=1.0),
        calibrated=True,
        targets=("tensorrt",),
        size_ratio=0.25,
        graph="basic",  # the fusions beyond know no pairs but int8 ones
    ),
    "int8-dynamic": Precision(
        module="int8_dynamic",
        tolerance=Tolerance(cosine=0.98, drop=1.0),
        operators=("Conv", "Gemm", "MatMul", "ConvInteger", "MatMulInteger"),
        size_ratio=0.25,
    ),
    # Judged against the fake-quantized module, which rounds at the same places: what is left is the order of sums and,
    # in ONNX Runtime, biases rounded to int32.
    "int8-qat": Precision(
        module=None, tolerance=Tolerance(cosine=0.995, drop=1.0), trained=True, targets=("tensorrt",), size_ratio=0.25
    ),
}
QAT = "int8-qat"
CONVERTED = [name for name, row in PRECISIONS.items() if not row.trained]  # what an fp32 checkpoint can become


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What a conversion may use.

    `images`, if it is calibrated, gives the calibration images anew at each call, as float32 (N, C, H, W) batches, or
    uint8 ones for a graph that takes raw pixels. `kept` are nodes that stay in float.
    """

    target: str | None
    images: Callable[[], Iterator[np.ndarray]] | None
    method: str = "minmax"
    kept: tuple[str, ...] = ()


def placements(name: str) -> tuple[str | None, ...]:
    """The targets that can be quantized for here: OpenVINO's files need NNCF. (None,) for one form for all."""
    able = importlib.util.find_spec("nncf") is not None
    return tuple(target for target in PRECISIONS[name].targets if able or target != OPENVINO) or (None,)


def methods(target: str | None) -> tuple[str, ...]:
    """The ways to set activation ranges for an engine: NNCF, which quantizes for OpenVINO, knows no entropy."""
    return tuple(method for method in METHODS if (target, method) != (OPENVINO, "entropy"))


def require(target: str | None, method: str) -> None:
    """Raise UserError where a target cannot be quantized for here, or not with that calibration method."""
    if target == OPENVINO and importlib.util.find_spec("nncf") is None:
        raise UserError('--target openvino needs NNCF, which is not installed; pip install -e ".[openvino]"')
    if method not in (*methods(target), AUTO):
        raise UserError(
            f"--calibration-method {method}: NNCF, which quantizes for OpenVINO, has no such method; choose "
            f"{', '.join(methods(target))} or {AUTO}"
        )


def requested(name: str, attested: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
    """The precision asked for, for each operator that holds weights (`attested` says what it got)."""
    row = PRECISIONS[name]
    return {operator: name if operator in row.operators else row.rest for operator in attested}


def convert(name: str, source: Path, destination: Path, conversion: Conversion) -> None:
    """Write `source` (fp32 ONNX) to `destination` in the precision `name`.

    Raises CheckFailed with the quantizer's own reason when it cannot take the graph.
    """
    import onnx
    from onnx.version_converter import ConvertError

    row = PRECISIONS[name]
    module = importlib.import_module(f"{__name__}.{row.module}")
    try:
        with tempfile.TemporaryDirectory(dir=destination.parent) as folder:
            module.convert(_raised(source, row.opset, Path(folder)), destination, conversion)
    except (ConvertError, onnx.shape_inference.InferenceError, onnx.checker.ValidationError, ValueError,
            RuntimeError) as error:  # fmt: skip
        reason = str(error).strip().splitlines()[0]
        raise CheckFailed(f"{destination.stem}: {name} cannot be made of this graph: {reason}") from error


def _raised(source: Path, opset: int, folder: Path) -> Path:
    """The file, or where it is written in a lower opset its like in this one."""
    import onnx
    from onnx import version_converter

    from export import graph

    if graph.opset(source) >= opset:
        return source
    raised = folder / source.name
    onnx.save(version_converter.convert_version(onnx.load(source), opset), raised)
    return raised

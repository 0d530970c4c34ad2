"""Variant: one way to write a checkpoint as a file, and the name that follows from it."""

from __future__ import annotations

import hashlib

from export import rewrites
from trainers.checkpoint import folder_name
from trainers.manifest import Struct

ONNX = "onnx"  # no exporter: an ONNX file of the user's, as it is
OPSET = 20  # from 20 on GELU is one operator; below it decomposes and quantizes badly


class Variant(Struct, frozen=True, kw_only=True):
    """How an artifact was made. Names are the command line's: `--exporter`, `--gelu`, `--quantize`, `--target`."""

    exporter: str = "dynamo"
    gelu: str = "exact"  # as the model has it; also for a model without GELU. A file's own: FILE.py:NAME@HASH
    precision: str = "fp32"
    target: str | None = None  # the engine quantization was placed for; None for precisions with one form for all
    batch: int | None = None  # None: dynamic
    opset: int | None = OPSET  # None for the torch artifact
    input_dtype: str = "float32"  # "uint8": raw pixels; the normalisation is then in the graph
    functions: bool = False  # custom activations as local functions instead of their operators
    rewrites: tuple[str, ...] = ()  # exact graph rewrites, in the order of their application
    kept: tuple[str, ...] = ()  # nodes that quantization leaves in float though it could take them
    calibration: Calibration | None = None

    def name(self, model: str) -> str:
        """The file's stem: model-exporter-gelu-precision, then what differs from its default, in a fixed order."""
        parts = [folder_name(model), self.exporter, folder_name(self.gelu), self.precision]
        if self.target not in (None, "cpu"):
            parts.append(str(self.target))
        if self.batch is not None:
            parts.append(f"b{self.batch}")
        if self.opset not in (None, OPSET):
            parts.append(f"opset{self.opset}")
        if self.input_dtype != "float32":
            parts.append(self.input_dtype)
        if self.functions:
            parts.append("functions")
        if self.rewrites != within(usual_rewrites(self.precision, self.target), self.exporter, self.opset):
            parts.append(self._rewrites_part())
        if self.calibration is not None and self.calibration.method != "minmax":
            parts.append(self.calibration.method)
        if self.kept:
            parts.append(f"mixed-{hashlib.sha256(' '.join(sorted(self.kept)).encode()).hexdigest()[:8]}")
        return "-".join(parts)

    def _rewrites_part(self) -> str:
        if not self.rewrites:
            return "plain"
        usual = {rewrites.default("tensorrt"): "rewritten-tensorrt", rewrites.default("cpu"): "rewritten"}
        return usual.get(self.rewrites) or "+".join(self.rewrites)


def usual_rewrites(precision: str, target: str | None) -> tuple[str, ...]:
    """What is rewritten where nothing is asked for: fp32 stays as the exporter wrote it, the rest suits its target."""
    return () if precision in ("fp32", "int8-qat") else rewrites.default(target)


def within(names: tuple[str, ...], exporter: str, opset: int | None) -> tuple[str, ...]:
    """Of these rewrites those that leave an exported graph at the opset asked for; an ONNX file may be raised."""
    if exporter == ONNX or opset is None:
        return names
    return tuple(name for name in names if rewrites.REWRITES[name].opset <= opset)


class Tried(Struct, frozen=True, kw_only=True):
    """What `--calibration-method auto` found for one method on held-out images, against the fp32 file's answers."""

    method: str
    divergence: float  # mean Kullback-Leibler divergence of the class probabilities, in nats
    agreement: float  # percent of the images with the same top-1
    images: int


class Calibration(Struct, frozen=True, kw_only=True):
    """Which images set the quantization ranges, and how."""

    method: str
    images: int
    source: str
    sha256: str
    classes: int | None = None  # that the images are of; None where they have no labels
    tried: tuple[Tried, ...] = ()  # the best first; empty where the method was named

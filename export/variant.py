"""Variant: one way to write a checkpoint as a file, and the name that follows from it."""

from __future__ import annotations

from trainers.checkpoint import folder_name
from trainers.manifest import Struct

OPSET = 20  # from 20 on GELU is one operator; below it decomposes and quantizes badly


class Variant(Struct, frozen=True, kw_only=True):
    """How an artifact was made. Names are the command line's: `--exporter`, `--gelu`, `--quantize`, `--target`."""

    exporter: str = "dynamo"
    gelu: str = "exact"  # as the model has it; also for a model without GELU
    precision: str = "fp32"
    target: str | None = None  # the engine quantization was placed for; None for precisions with one form for all
    batch: int | None = None  # None: dynamic
    opset: int | None = OPSET  # None for the torch artifact
    rewrites: tuple[str, ...] = ()
    calibration: Calibration | None = None

    def name(self, model: str) -> str:
        """The file's stem: model-exporter-gelu-precision, then what differs from its default, in a fixed order."""
        parts = [folder_name(model), self.exporter, self.gelu, self.precision]
        if self.target not in (None, "cpu"):
            parts.append(str(self.target))
        if self.batch is not None:
            parts.append(f"b{self.batch}")
        if self.opset not in (None, OPSET):
            parts.append(f"opset{self.opset}")
        parts += self.rewrites
        return "-".join(parts)


class Calibration(Struct, frozen=True, kw_only=True):
    """Which images set the quantization ranges, and how."""

    method: str
    images: int
    source: str
    sha256: str

"""Subject: the fp32 file whose layers are quantized or kept, and what is known of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from msgspec.structs import replace

from export import pipeline, reference
from export.precision import int8
from export.search.judge import Judge, open_judge
from export.search.quantizer import Quantizer
from export.search.records import Basis
from trainers import cli
from trainers.manifest import PROGRAM, CheckFailed, environment

if TYPE_CHECKING:
    from export.artifact import Artifact
    from export.job import Job
    from export.variant import Calibration, Variant


@dataclass(frozen=True)
class Subject:
    """An fp32 file, verified, and the int8 variant whose placement and calibration are examined."""

    job: Job
    variant: Variant  # nothing kept
    parent: Artifact

    @classmethod
    def of(cls, job: Job, variant: Variant) -> Subject:
        """Export the fp32 file if need be. Raises UserError for a target whose engine chooses the layers itself."""
        cli.choose(variant.target or "", int8.PLACEMENTS, "--target for choosing layers")
        variant = pipeline.settled(job, replace(variant, kept=()))
        return cls(job, variant, pipeline.source(job, variant)[0])

    @property
    def name(self) -> str:
        return self.variant.name(self.job.checkpoint.model)

    @property
    def path(self) -> Path:
        return self.job.folder / self.parent.file.path

    @property
    def target(self) -> str:
        assert self.variant.target is not None, "int8 is placed for a target"
        return self.variant.target

    @property
    def calibration(self) -> Calibration:
        assert self.variant.calibration is not None, "int8 is calibrated"
        return self.variant.calibration

    @cached_property
    def graph(self) -> onnx.ModelProto:
        """The fp32 file's model."""
        return onnx.load(self.path)

    @cached_property
    def quantizer(self) -> Quantizer:
        """Raises CheckFailed with ONNX Runtime's reason where it cannot quantize the graph."""
        try:
            return Quantizer(self.path, pipeline.conversion(self.job, self.variant, self.calibration.method))
        except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckFailed(f"{self.name}: int8 cannot be made of this graph: {reason}") from error

    def images(self, count: int | None) -> reference.Verification:
        """Choices are made on the validation split."""
        return reference.choose_images(self.job.data.splits["val"], self.job.checkpoint.preprocess, count)

    def basis(self, count: int | None) -> Basis:
        """What measurements on `count` images (None: all) depend on."""
        chosen = self.images(count)
        return Basis(
            source=self.parent.file.sha256,
            target=self.target,
            calibration=self.calibration,
            images=len(chosen.indices),
            split=chosen.split.name,
            verified_on=chosen.key,
            labelled=self.job.labelled,
            program=environment().packages.get(PROGRAM, ""),
        )

    @contextmanager
    def judge(self, count: int | None) -> Iterator[Judge]:
        """Compares int8 forms with the fp32 file on `count` images."""
        with open_judge(
            self.path,
            self.images(count),
            batch=self.variant.batch,
            labelled=self.job.labelled,
            target=self.target,
            dtype=self.variant.input_dtype,
        ) as judge:
            yield judge

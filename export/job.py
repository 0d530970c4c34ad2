"""Job: one model and the images its forms are calibrated and judged on. Light until something has to be computed."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from export import calibration, reference
from export.activations import EXACT, has_gelu
from export.artifact import Artifact, Parity, is_true
from export.choice import Choice
from export.exporters import EXPORTERS, TORCH
from export.precision import AUTO, PRECISIONS, methods
from export.reference import Verification
from export.variant import Calibration, Variant
from trainers import external
from trainers.checkpoint import Checkpoint, build, origin
from trainers.dataset import Dataset
from trainers.manifest import PROGRAM, File

if TYPE_CHECKING:
    import numpy as np

    from export.foreign import ModelFile


@dataclass(frozen=True, kw_only=True)
class Job:
    """One checkpoint, or an ONNX file in its place, and the images its variants are calibrated and judged on."""

    checkpoint: Checkpoint  # for an ONNX file what that says of itself; its weights are then the file
    source: Path  # the folder the checkpoint lies in
    folder: Path  # where artifacts go
    data: Dataset
    calibration_images: int
    verify_images: int  # of the test split, at most
    exact_images: int | None = None  # for what computes as PyTorch does; None: as many
    within: Job | None = None  # whose verification images hold all of these, so that its logits serve
    calibration_method: str = "minmax"
    labelled: bool = True  # whether the images' labels are the model's classes
    file: ModelFile | None = None  # the ONNX file that everything is made from
    reproduce: bool = False  # make each file twice, and say whether they are the same
    made: dict[Variant, Artifact] = field(default_factory=dict)
    exported: dict[Variant, Path] = field(default_factory=dict)  # files that wait to be taken, from comparing exporters
    answered: dict[Variant, tuple[Verification, np.ndarray]] = field(default_factory=dict)  # those files' logits
    choices: dict[Variant, Choice] = field(default_factory=dict)  # what came of it, to be recorded with those files

    @cached_property
    def verification(self) -> Verification:
        return reference.choose_images(self.data.splits["test"], self.checkpoint.preprocess, self.verify_images)

    @cached_property
    def calibration(self) -> tuple[Verification, Calibration]:
        return calibration.choose(
            self.data, self.checkpoint.preprocess, self.calibration_images, self.calibration_method, self.labelled
        )

    @cached_property
    def reference(self) -> File:
        """The file of the first images and their logits, written anew."""
        split, preprocess = self.data.splits["test"], self.checkpoint.preprocess
        return reference.write_reference(self.folder, split, preprocess, lambda chosen: self.answers("exact", chosen))

    @cached_property
    def code(self) -> str | None:
        """The sha256 of what belongs to the weights' file and can change beside it, if anything does: the file of the
        user's own model, the external data of an ONNX file."""
        return self.file.data_sha256 if self.file is not None else external.fingerprint(self.checkpoint.model)

    @cached_property
    def origin(self) -> Checkpoint:
        """The fp32 checkpoint that accuracy drops are counted from."""
        return origin(self.checkpoint, self.source)

    def suffices(self, judged: Parity) -> bool:
        """Whether a verdict is on the images asked for, or on more of them: larger choices hold the smaller ones."""
        of = reference.choose_images(self.data.splits["test"], self.checkpoint.preprocess, judged.images)
        return judged.images >= len(self.verification.indices) and judged.verified_on == of.key

    def between(self, variant: Variant) -> Job:
        """The same, for what lies between two files and was not asked for by name.

        It is judged on the reference images, or on as many as the record was that it would replace.
        """
        record = _record(self, variant)
        fewest = min(reference.REFERENCE_IMAGES, self.verify_images)
        count = max(fewest, record.parity.images if record else 0)
        within = self if count <= self.verify_images else None
        return dataclasses.replace(self, verify_images=count, exact_images=None, within=within, made=dict(self.made))

    def judging(self, variant: Variant) -> Job:
        """The same, with the images that this variant is judged on.

        An fp32 file of the model's own activations is right or wrong by its numbers, which fewer images show as well;
        what changes the arithmetic is judged by its accuracy too.
        """
        converted = variant.exporter != TORCH and variant.precision == "fp32" and variant.gelu == EXACT
        return self._exact if converted else self

    @cached_property
    def _exact(self) -> Job:
        if self.exact_images is None or self.exact_images >= self.verify_images:
            return self
        return dataclasses.replace(self, verify_images=self.exact_images, exact_images=None, within=self)

    def logits(self, gelu: str) -> np.ndarray:
        """The model's own logits on the verification images, with this activation."""
        if self.within is not None:
            return self.within.logits(gelu)[self._rows]
        return self.answers(gelu, self.verification)

    @cached_property
    def _rows(self) -> np.ndarray:
        """Which of the images of `within` these are."""
        assert self.within is not None
        return self.within.verification.indices.searchsorted(self.verification.indices)

    @cached_property
    def origin_logits(self) -> np.ndarray:
        """The model's logits in fp32, before anything was swapped or quantized."""
        if self.within is not None:
            return self.within.origin_logits[self._rows]
        if self.file is not None:
            return self.logits("exact")
        return reference.logits(self.origin, self.source, self.folder, "exact", self.verification)

    def answers(self, gelu: str, chosen: Verification) -> np.ndarray:
        """The model's own logits on any images: PyTorch's, or those of the ONNX file in ONNX Runtime."""
        if self.file is not None:
            return reference.file_logits(self.file, self.checkpoint.weights.sha256, self.folder, chosen)
        return reference.logits(self.checkpoint, self.source, self.folder, gelu, chosen)


def complete(job: Job, variant: Variant) -> Variant:
    """The variant with what the job decides: the calibration of a calibrated precision."""
    if not PRECISIONS[variant.precision].calibrated or variant.calibration is not None:
        return variant
    asked = job.calibration[1]
    known = _decided(job, variant, asked) if asked.method == AUTO else None
    return msgspec.structs.replace(variant, calibration=known or asked)


def _decided(job: Job, variant: Variant, asked: Calibration) -> Calibration | None:
    """What an earlier `auto` decided on, if the artifact that it made still stands."""
    for method in methods(variant.target):
        named = msgspec.structs.replace(variant, calibration=msgspec.structs.replace(asked, method=method))
        record = _record(job, named)
        tried = record.variant.calibration.tried if record and record.variant.calibration else ()
        if record and tried and _is_of_this_version(record):
            known = calibration.decided(asked, tried)
            if record.variant == msgspec.structs.replace(variant, calibration=known):
                return known
    return None


def find_made(job: Job, variant: Variant) -> Artifact | None:
    """The artifact on disk, if it is this variant of this checkpoint, judged on these images or on more, and undamaged.

    Decided by records and hashes: no framework is loaded, and of the images at most the labels are read.
    """
    variant, job = complete(job, variant), job.judging(variant)
    if variant in job.made:
        return job.made[variant]
    record = _record(job, variant)
    if record is None:
        return None
    same = (
        record.variant == variant
        and _is_of_this_version(record)  # another one's recipes may differ
        and job.suffices(record.parity)
        and (record.parity.accuracy is not None) == job.labelled
        and (variant not in job.choices or record.choice == job.choices[variant])
        and record.code == job.code
        and (not job.reproduce or record.reproduced is not None)
        and all(is_true(job.folder / file.path, file) for file in record.files)
        and is_true(job.folder / record.reference.path, record.reference)
    )
    if same:
        job.made[variant] = record
    return record if same else None


def recorded_choice(job: Job, variant: Variant) -> Choice | None:
    """Which exporter was decided on before, for these weights by this version."""
    for exporter in EXPORTERS:
        wanted = msgspec.structs.replace(variant, exporter=exporter)
        record = _record(job, wanted)
        if record is not None and record.variant == wanted and record.choice and _is_of_this_version(record):
            return record.choice
    return None


def _is_of_this_version(record: Artifact) -> bool:
    return record.environment.packages.get(PROGRAM) == importlib.metadata.version(PROGRAM)


def knows_gelu(job: Job) -> bool:
    """Whether the model has an exact GELU: as its torch artifact's record counts, else by building it."""
    record = _record(job, Variant(exporter=TORCH, opset=None))
    if record is not None and record.attested:
        return "GELU" in record.attested
    import torch

    with torch.device("meta"):
        return has_gelu(build(job.checkpoint))


def _record(job: Job, variant: Variant) -> Artifact | None:
    """The record on disk of this variant's name, where it is of this job's very weights."""
    record = Artifact.find(job.folder / f"{variant.name(job.checkpoint.model)}.json")
    return record if record and record.parents[0].sha256 == job.checkpoint.weights.sha256 else None

"""The way of one artifact: checkpoint -> file -> checked -> verified -> recorded."""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from export import calibration, graph, parity, reference, rewrites
from export.activations import swap_gelu
from export.artifact import FAILED, Artifact, Parent, Parity, Tensor, is_true
from export.exporters import INPUT, OUTPUT, TORCH, Request, write_onnx
from export.precision import PRECISIONS, Conversion, Tolerance, convert, requested
from export.rewrites.applied import Applied
from export.variant import OPSET, Calibration, Variant
from trainers import qat
from trainers.checkpoint import Checkpoint, load_model, origin
from trainers.dataset import Dataset
from trainers.manifest import PROGRAM, CheckFailed, File, UserError, environment, link_or_copy
from trainers.serving import peak_bytes


@dataclass(frozen=True, kw_only=True)
class Job:
    """One checkpoint and the images its variants are calibrated and judged on."""

    checkpoint: Checkpoint
    source: Path  # the folder the checkpoint lies in
    folder: Path  # where artifacts go
    data: Dataset
    calibration_images: int
    verify_images: int | None  # None: all of the test split
    labelled: bool = True  # whether the images' labels are the model's classes
    made: dict[Variant, Artifact] = field(default_factory=dict)

    @cached_property
    def verification(self) -> reference.Verification:
        return reference.choose_images(self.data.splits["test"], self.checkpoint.preprocess, self.verify_images)

    @cached_property
    def calibration(self) -> tuple[reference.Verification, Calibration]:
        return calibration.choose(self.data, self.checkpoint.preprocess, self.calibration_images)

    @cached_property
    def reference(self) -> File:
        return reference.write_reference(self.checkpoint, self.source, self.folder, self.data.splits["test"])

    @cached_property
    def origin(self) -> Checkpoint:
        """The fp32 checkpoint that accuracy drops are counted from."""
        return origin(self.checkpoint, self.source)

    def logits(self, gelu: str) -> np.ndarray:
        """PyTorch's logits on the verification images, with this activation."""
        return reference.logits(self.checkpoint, self.source, self.folder, gelu, self.verification)

    @cached_property
    def origin_logits(self) -> np.ndarray:
        """PyTorch's logits in fp32, before anything was swapped or quantized."""
        return reference.logits(self.origin, self.source, self.folder, "exact", self.verification)


def complete(job: Job, variant: Variant) -> Variant:
    """The variant with what the job decides: the calibration of a calibrated precision."""
    if PRECISIONS[variant.precision].calibrated:
        return msgspec.structs.replace(variant, calibration=job.calibration[1])
    return variant


def export(job: Job, variant: Variant) -> Artifact:
    """Make one artifact, or find it already made and true. Its record is on disk when this returns.

    A variant beyond its tolerance is recorded with `parity.passed` false, in the folder `failed`. Raises UserError
    when the exporter or the engine refuses the model, CheckFailed when the file or its parent is invalid.
    """
    variant = complete(job, variant)
    name = variant.name(job.checkpoint.model)
    reused = job.made.get(variant) or _reuse(job, variant, name)
    if reused is not None:
        job.made[variant] = reused
        return reused
    began = time.perf_counter()
    job.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=job.folder, prefix=".export-") as scratch:
        suffix = ".safetensors" if variant.exporter == TORCH else ".onnx"
        path = Path(scratch) / f"{name}{suffix}"
        parents, applied = _write(job, variant, path)
        inputs, outputs, attested = _describe(job, variant, path, name)
        judged = _verify(job, variant, path)
        record = Artifact(
            kind="torch" if variant.exporter == TORCH else "onnx",
            model=job.checkpoint.model,
            options=job.checkpoint.options,
            variant=variant,
            files=(File.of(path),),
            preprocess=job.checkpoint.preprocess,
            classes=job.checkpoint.classes,
            inputs=inputs,
            outputs=outputs,
            parents=parents,
            reference=job.reference,
            parity=judged,
            rewrites=applied,
            requested=requested(variant.precision, attested),
            attested=attested,
            seconds=time.perf_counter() - began,
            peak_memory_bytes=peak_bytes(),
            command=shlex.join(["python", "-m", "export", *sys.argv[1:]]),
            environment=environment(),
        )
        _place(job, record, path, name)
    job.made[variant] = record
    return record


def _reuse(job: Job, variant: Variant, name: str) -> Artifact | None:
    """The artifact on disk, if it is this variant of this checkpoint, judged on these images, and undamaged."""
    path = job.folder / f"{name}.json"
    if not path.is_file():
        return None
    try:
        record = Artifact.load(path)
    except UserError:
        return None  # it cannot be trusted, so it is made again
    same = (
        record.variant == variant
        and record.environment.packages.get(PROGRAM) == environment().packages.get(PROGRAM)  # its recipes may differ
        and record.parents[0].sha256 == job.checkpoint.weights.sha256
        and record.parity.images == len(job.verification.indices)
        and record.parity.verified_on == job.verification.key
        and is_true(job.folder / record.file.path, record.file)
        and record.reference == job.reference
    )
    return record if same else None


def _write(job: Job, variant: Variant, path: Path) -> tuple[tuple[Parent, ...], tuple[Applied, ...]]:
    """Write the variant's file; say what it was made from, and what was rewritten on the way."""
    weights = job.checkpoint.weights
    origin = Parent(role="checkpoint", path=weights.path, sha256=weights.sha256)
    if variant.exporter == TORCH:
        link_or_copy(weights.verify(job.source), path)
        return (origin,), ()
    if PRECISIONS[variant.precision].module is None and not variant.rewrites:
        module = swap_gelu(load_model(job.checkpoint, job.source), variant.gelu)
        if PRECISIONS[variant.precision].trained:
            module = qat.convert(module)
        request = Request(input_shape=job.checkpoint.input_shape, batch=variant.batch, opset=variant.opset or OPSET)
        write_onnx(variant.exporter, module, path, request)
        return (origin,), ()
    if PRECISIONS[variant.precision].module is None:
        plain = _parent(job, msgspec.structs.replace(variant, rewrites=()))
        return (origin, _edge("fp32", plain)), _rewrite(job.folder / plain.file.path, path, variant.rewrites)
    parent, edges = source(job, variant)
    convert(variant.precision, job.folder / parent.file.path, path, conversion(job, variant))
    return (origin, *edges), parent.rewrites


def conversion(job: Job, variant: Variant) -> Conversion:
    """What a variant's conversion may use."""
    return Conversion(
        target=variant.target,
        images=functools.partial(calibration.stream, job.calibration[0]) if variant.calibration else None,
        method=variant.calibration.method if variant.calibration else "minmax",
        kept=variant.kept,
    )


def source(job: Job, variant: Variant) -> tuple[Artifact, tuple[Parent, ...]]:
    """The verified fp32 file that a conversion starts from, rewritten where that changes anything; and its ancestry."""
    bare = msgspec.structs.replace(variant, precision="fp32", target=None, calibration=None, kept=(), rewrites=())
    plain = _parent(job, bare)
    edges = (_edge("fp32", plain),)
    if variant.rewrites:
        with contextlib.suppress(NothingMatched):
            rewritten = _parent(job, msgspec.structs.replace(bare, rewrites=variant.rewrites))
            return rewritten, (*edges, _edge("rewritten", rewritten))
    return plain, edges


def _parent(job: Job, variant: Variant) -> Artifact:
    """An artifact to go on from. Raises CheckFailed when it is not right itself."""
    made = export(job, variant)
    if not made.parity.passed:
        raise CheckFailed(f"{made.file.path}: this parent failed verification: {made.parity.reason}")
    return made


def _edge(role: Literal["fp32", "rewritten"], parent: Artifact) -> Parent:
    return Parent(role=role, path=parent.file.path, sha256=parent.file.sha256)


class NothingMatched(UserError):
    """None of the rewrites that were asked for has anything to change in this graph."""


def _rewrite(source: Path, destination: Path, names: tuple[str, ...]) -> tuple[Applied, ...]:
    """Write the rewritten form of a file. Raises NothingMatched, and CheckFailed when a rewrite is not exact."""
    import onnx

    model, applied = rewrites.rewrite(onnx.load(source), names)
    if not any(one.matched for one in applied):
        raise NothingMatched(f"--rewrite {','.join(names)}: matches nothing in {source.name}; leave it out")
    onnx.save(model, destination)
    return applied


def _describe(
    job: Job, variant: Variant, path: Path, name: str
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], dict[str, dict[str, int]]]:
    """Inputs, outputs and weight types, read back from the finished file."""
    if variant.exporter == TORCH:
        inputs = (Tensor(name=INPUT, dtype="float", shape=(None, *job.checkpoint.input_shape)),)
        return inputs, (Tensor(name=OUTPUT, dtype="float", shape=(None, len(job.checkpoint.classes))),), {}
    model = graph.finish(path, name, job.checkpoint)
    return *graph.signature(model), graph.weight_types(model)


def _verify(job: Job, variant: Variant, path: Path) -> Parity:
    """Run the file on the verification images and compare it with PyTorch."""
    expected, checkpoint = job.logits(variant.gelu), job.origin_logits
    if variant.exporter == TORCH:
        logits, single, tolerance, engine = expected, expected[:0], Tolerance(), "torch"
    else:
        form = (variant.precision, variant.target)
        logits, single = parity.run(path, reference.images(job.verification, title=path.stem), variant.batch, *form)
        tolerance, engine = PRECISIONS[variant.precision].tolerance, parity.engine(*form)
    size = variant.batch or min(reference.BATCH, len(job.verification.indices))
    batches = (1, size) if len(single) else (size,)
    return parity.compare(
        logits,
        single,
        expected,
        checkpoint,
        job.verification.labels if job.labelled else None,
        split=job.verification.split.name,
        verified_on=job.verification.key,
        batches=batches,
        tolerance=tolerance,
        engine=engine,
    )


def _place(job: Job, record: Artifact, path: Path, name: str) -> None:
    """Move the file to its place and write the record beside it, last. What failed goes where no stage looks."""
    failed = job.folder / FAILED
    good, bad = job.folder / path.name, failed / path.name
    target, other = (good, bad) if record.parity.passed else (bad, good)
    target.parent.mkdir(exist_ok=True)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    path.chmod(0o644)
    path.replace(target)
    record.save(target.with_suffix(".json"))
    # The same variant's earlier file gave the other verdict: the newer one stands.
    other.with_suffix(".json").unlink(missing_ok=True)
    other.unlink(missing_ok=True)

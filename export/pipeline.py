"""The way of one artifact: checkpoint -> file -> checked -> verified -> recorded."""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import msgspec

from export import calibration, foreign, functions, graph, metamorphic, modules, parity, reference, rewrites
from export.activations import swap_gelu
from export.artifact import FAILED, Artifact, Parent, Parity, Tensor
from export.exporters import INPUT, OUTPUT, TORCH, Request, data_path, move, write_onnx
from export.job import Job, complete, find_made
from export.metamorphic import Metamorphic
from export.precision import PRECISIONS, Conversion, Tolerance, convert, requested
from export.reproduce import compare
from export.rewrites.applied import Applied
from export.variant import OPSET, Variant
from trainers import qat
from trainers.checkpoint import build, load_model
from trainers.manifest import CheckFailed, File, UserError, environment, link_or_copy
from trainers.serving import peak_bytes


def export(job: Job, variant: Variant) -> Artifact:
    """Make one artifact, or find it already made and true. Its record is on disk when this returns.

    A variant beyond its tolerance is recorded with `parity.passed` false, in the folder `failed`. Raises UserError
    when the exporter or the engine refuses the model, CheckFailed when the file or its parent is invalid.
    """
    variant = complete(job, variant)
    name = variant.name(job.checkpoint.model)
    reused = find_made(job, variant)
    if reused is not None:
        return reused
    began = time.perf_counter()
    job.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=job.folder, prefix=".export-") as scratch:
        suffix = ".safetensors" if variant.exporter == TORCH else ".onnx"
        path = Path(scratch) / f"{name}{suffix}"
        parents, applied = _write(job, variant, path)
        inputs, outputs, attested = _describe(job, variant, path, name)
        judged = _verify(job, variant, path)
        independent = _metamorphic(job, variant, path)
        if independent is not None and independent.broken:
            reason = "; ".join(filter(None, (judged.reason, independent.broken)))
            judged = msgspec.structs.replace(judged, passed=False, reason=reason)
        record = Artifact(
            kind="torch" if variant.exporter == TORCH else "onnx",
            model=job.checkpoint.model,
            options=job.checkpoint.options,
            variant=variant,
            files=tuple(File.of(file) for file in (path, data_path(path)) if file.is_file()),
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
            choice=job.choices.get(variant),
            metamorphic=independent,
            reproduced=_reproduce(job, variant, path) if job.reproduce else None,
        )
        _place(job, record, path, name)
    job.made[variant] = record
    return record


def _write(job: Job, variant: Variant, path: Path) -> tuple[tuple[Parent, ...], tuple[Applied, ...]]:
    """Write the variant's file; say what it was made from, and what was rewritten on the way."""
    weights = job.checkpoint.weights
    role: Literal["checkpoint", "source"] = "source" if job.file else "checkpoint"
    origin = Parent(role=role, path=weights.path, sha256=weights.sha256)
    if variant.exporter == TORCH:
        link_or_copy(weights.verify(job.source), path)
        return (origin,), ()
    if job.file is not None and variant.precision == "fp32" and not variant.rewrites and not variant.functions:
        foreign.copy(job.file, path)
        return (origin,), ()
    if variant.functions:
        plain = _parent(job, msgspec.structs.replace(variant, functions=False))
        _outline(job, variant, job.folder / plain.file.path, path)
        return (*plain.parents, _edge("plain", plain)), plain.rewrites
    if PRECISIONS[variant.precision].module is None and not variant.rewrites:
        written = job.exported.pop(variant, None)
        if written is None:
            export_module(job, variant, path)
        else:
            move(written, path)
        return (origin,), ()
    if PRECISIONS[variant.precision].module is None:
        plain = _parent(job, msgspec.structs.replace(variant, rewrites=()))
        return (origin, _edge("fp32", plain)), _rewrite(job.folder / plain.file.path, path, variant.rewrites)
    parent, edges = _source(job, variant)
    images = functools.partial(calibration.stream, job.calibration[0]) if variant.calibration else None
    conversion = Conversion(
        target=variant.target,
        images=images,
        method=variant.calibration.method if variant.calibration else "minmax",
        kept=variant.kept,
    )
    convert(variant.precision, job.folder / parent.file.path, path, conversion)
    return (origin, *edges), parent.rewrites


def export_module(job: Job, variant: Variant, path: Path) -> None:
    """Export the checkpoint's module with the variant's activation. Raises UserError with the exporter's reason."""
    module = swap_gelu(load_model(job.checkpoint, job.source), variant.gelu)
    if PRECISIONS[variant.precision].trained:
        module = qat.convert(module)
    request = Request(input_shape=job.checkpoint.input_shape, batch=variant.batch, opset=variant.opset or OPSET)
    write_onnx(variant.exporter, module, path, request)


def _source(job: Job, variant: Variant) -> tuple[Artifact, tuple[Parent, ...]]:
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


def _outline(job: Job, variant: Variant, source: Path, destination: Path) -> None:
    """Write a file with its activations as functions. Raises UserError where every one is an operator already."""
    import onnx

    model = onnx.load(source)
    if not functions.outline(model, functions.activations(swap_gelu(build(job.checkpoint), variant.gelu))):
        raise UserError(
            f"--functions: no activation of {source.name} is more than one operator; leave it out, or give --gelu "
            "sigmoid or --opset 18"
        )
    onnx.save(model, destination)


def _edge(role: Literal["fp32", "rewritten", "plain"], parent: Artifact) -> Parent:
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
        outputs = (Tensor(name=OUTPUT, dtype="float", shape=(None, len(job.checkpoint.classes))),)
        return inputs, outputs, modules.module_types(swap_gelu(load_model(job.checkpoint, job.source), variant.gelu))
    model = graph.finish(path, name, job.checkpoint)
    return *graph.signature(model), graph.weight_types(model)


def _verify(job: Job, variant: Variant, path: Path) -> Parity:
    """Run the file on the verification images and compare it with PyTorch."""
    expected, checkpoint = job.logits(variant.gelu), job.origin_logits
    if variant.exporter == TORCH:
        logits, single, tolerance, engine = expected, expected[:0], Tolerance(), "torch"
    else:
        logits, single = parity.run(path, reference.images(job.verification, title=path.stem), variant.batch)
        tolerance, engine = PRECISIONS[variant.precision].tolerance, parity.engine()
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


def _metamorphic(job: Job, variant: Variant, path: Path) -> Metamorphic | None:
    """Whether an image's logits depend on that image alone; PyTorch's own weights are not asked."""
    if variant.exporter == TORCH:
        return None
    loaded = parity.session(path)
    name = loaded.get_inputs()[0].name
    images = next(reference.images(job.verification, title="metamorphic"))
    return metamorphic.check(lambda x: loaded.run(None, {name: x})[0], images, variant.batch, variant.precision)


def _reproduce(job: Job, variant: Variant, path: Path) -> str:
    """Make the file once more, and compare the two."""
    again = path.parent / "again" / path.name
    again.parent.mkdir()
    _write(job, variant, again)
    _describe(job, variant, again, path.stem)
    return compare(path, again)


def _place(job: Job, record: Artifact, path: Path, name: str) -> None:
    """Move the file to its place and write the record beside it, last. What failed goes where no stage looks."""
    failed = job.folder / FAILED
    good, bad = job.folder / path.name, failed / path.name
    target, other = (good, bad) if record.parity.passed else (bad, good)
    target.parent.mkdir(exist_ok=True)
    for file in (path, data_path(path)):
        if file.is_file():
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
            file.chmod(0o644)
    move(path, target)
    record.save(target.with_suffix(".json"))
    # The same variant's earlier file gave the other verdict: the newer one stands.
    for file in (other.with_suffix(".json"), other, data_path(other)):
        file.unlink(missing_ok=True)

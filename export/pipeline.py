"""The way of one artifact: checkpoint -> file -> checked -> verified -> recorded."""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
import time
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from export import (
    calibration,
    engines,
    foreign,
    functions,
    graph,
    ir,
    metamorphic,
    modules,
    parity,
    pixels,
    reference,
    rewrites,
)
from export.activations import swap_gelu
from export.artifact import FAILED, Artifact, Parent, Parity, Tensor
from export.exporters import INPUT, OUTPUT, TORCH, Request, data_path, move, write_onnx
from export.job import Job, complete, find_made, recorded_choice
from export.metamorphic import Metamorphic
from export.precision import AUTO, OPENVINO, PRECISIONS, Conversion, Tolerance, convert, methods, requested
from export.reproduce import compare
from export.rewrites.applied import Applied
from export.variant import OPSET, Calibration, Variant
from trainers import qat
from trainers.checkpoint import build, load_model
from trainers.manifest import CheckFailed, File, UserError, environment, invocation, link_or_copy
from trainers.serving import peak_bytes

SUFFIXES = {"torch": (".safetensors",), "onnx": (".onnx",), "openvino": (".xml", ".bin")}  # by kind of artifact


def settled(job: Job, variant: Variant) -> Variant:
    """The variant with all that the job decides; for its calibration method all of them may have to be tried."""
    variant = complete(job, variant)
    if variant.calibration is None or variant.calibration.method != AUTO:
        return variant
    return msgspec.structs.replace(variant, calibration=_best_method(job, variant, variant.calibration))


def _best_method(job: Job, variant: Variant, asked: Calibration) -> Calibration:
    """Try every calibration method on held-out images; the closest to the float parent is taken."""
    parent, _ = source(job, variant)
    tried = calibration.try_methods(
        methods(variant.target),
        variant,
        job.folder / parent.file.path,
        functools.partial(conversion, job, variant),
        calibration.held_out(job.data, job.checkpoint.preprocess),
    )
    return calibration.decided(asked, tried)


def conversion(job: Job, variant: Variant, method: str) -> Conversion:
    """What the variant's conversion may use."""
    calibrated = PRECISIONS[variant.precision].calibrated
    stream = functools.partial(calibration.stream, batch=variant.batch, dtype=variant.input_dtype)
    return Conversion(
        target=variant.target,
        images=functools.partial(stream, job.calibration[0]) if calibrated else None,
        method=method,
        kept=variant.kept,
    )


def export(job: Job, variant: Variant) -> Artifact:
    """Make one artifact, or find it already made and true. Its record is on disk when this returns.

    A variant beyond its tolerance is recorded with `parity.passed` false, in the folder `failed`. Raises UserError
    when the exporter or the engine refuses the model, CheckFailed when the file or its parent is invalid.
    """
    variant = settled(job, variant)
    job = job.judging(variant)
    name = variant.name(job.checkpoint.model)
    reused = find_made(job, variant)
    if reused is not None:
        return reused
    began = time.perf_counter()
    job.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=job.folder, prefix=".export-") as scratch:
        kind = _kind(variant)
        path = Path(scratch) / f"{name}{SUFFIXES[kind][0]}"
        parents, applied = _write(job, variant, path)
        if variant.input_dtype == "uint8" and PRECISIONS[variant.precision].module is None:
            pixels.take_pixels(path, job.checkpoint.preprocess)
            job.answered.pop(variant, None)  # what it answered to normalised images
        inputs, outputs, attested = _describe(job, variant, path, name)
        judged, independent = _verify(job, variant, path)
        if independent is not None and independent.broken:
            reason = "; ".join(filter(None, (judged.reason, independent.broken)))
            judged = msgspec.structs.replace(judged, passed=False, reason=reason)
        record = Artifact(
            kind=kind,
            model=job.checkpoint.model,
            options=job.checkpoint.options,
            variant=variant,
            files=tuple(File.of(file) for file in _files(path, kind)),
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
            command=invocation(),
            environment=environment(),
            choice=job.choices.get(variant) or recorded_choice(job, variant),
            metamorphic=independent,
            code=job.code,
            reproduced=_reproduce(job, variant, path) if job.reproduce else None,
        )
        _place(job, record, path, name)
    job.made[variant] = record
    return record


def _kind(variant: Variant) -> Literal["torch", "onnx", "openvino"]:
    """What kind of file the variant becomes."""
    if variant.exporter == TORCH:
        return "torch"
    return "openvino" if variant.target == OPENVINO else "onnx"


def _files(path: Path, kind: str) -> list[Path]:
    """The artifact's files, the one that an engine loads first; a large ONNX graph has its weights beside it."""
    parts = [path.with_suffix(suffix) for suffix in SUFFIXES[kind]]
    return [*parts, data_path(path)] if data_path(path).is_file() else parts


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
        plain = _parent(job, msgspec.structs.replace(variant, rewrites=(), input_dtype="float32"))
        return (origin, _edge("fp32", plain)), _rewrite(job.folder / plain.file.path, path, variant.rewrites)
    parent, edges = source(job, variant)
    method = variant.calibration.method if variant.calibration else "minmax"
    convert(variant.precision, job.folder / parent.file.path, path, conversion(job, variant, method))
    return (origin, *edges), parent.rewrites


def export_module(job: Job, variant: Variant, path: Path) -> None:
    """Export the checkpoint's module with the variant's activation. Raises UserError with the exporter's reason."""
    module = swap_gelu(load_model(job.checkpoint, job.source), variant.gelu)
    if PRECISIONS[variant.precision].trained:
        module = qat.convert(module)
    request = Request(input_shape=job.checkpoint.input_shape, batch=variant.batch, opset=variant.opset or OPSET)
    write_onnx(variant.exporter, module, path, request)


def source(job: Job, variant: Variant) -> tuple[Artifact, tuple[Parent, ...]]:
    """The verified fp32 file that a conversion starts from, rewritten where that changes anything; and its ancestry.

    A rewritten file that nobody asked for by name is verified on the reference images only, unless one that stands was
    verified on more: its rewrites were proved, and what is made of it is verified in full.
    """
    bare = msgspec.structs.replace(variant, precision="fp32", target=None, calibration=None, kept=(), rewrites=())
    plain = _parent(job, bare)
    edges = (_edge("fp32", plain),)
    if variant.rewrites:
        with contextlib.suppress(NothingMatched):
            between = msgspec.structs.replace(bare, rewrites=variant.rewrites)
            rewritten = _parent(job.between(between), between)
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
    if _kind(variant) == "openvino":
        read = ir.finish(path, graph.essentials(name, job.checkpoint))
        return *ir.signature(read), ir.weight_types(read)
    model = graph.finish(path, name, job.checkpoint)
    return *graph.signature(model), graph.weight_types(model)


def _verify(job: Job, variant: Variant, path: Path) -> tuple[Parity, Metamorphic | None]:
    """Run the file on the verification images: against PyTorch, and whether an image's logits depend on it alone.

    PyTorch's own weights are compared with themselves, and not asked the second.
    """
    expected = job.logits(variant.gelu)
    rows = np.arange(len(expected))
    if variant.exporter == TORCH:
        return _compare(job, variant, rows, expected, expected[:0], Tolerance(), "torch"), None
    form, tolerance = (variant.precision, variant.target), PRECISIONS[variant.precision].tolerance
    infer = engines.load(path, *form)
    chosen, before, known = job.verification, expected[:0], job.answered.pop(variant, None)
    if known is not None and len(known[1]) < len(expected):  # a larger choice holds the smaller one
        (chosen, rows), before = chosen.apart(known[0]), known[1]
    images = functools.partial(reference.images, chosen, dtype=variant.input_dtype)
    logits, single = parity.run(infer, images(title=path.stem), variant.batch)
    logits = np.concatenate([logits, before])
    judged = _compare(job, variant, rows, logits, single, tolerance, parity.engine(*form))
    return judged, metamorphic.check(infer, next(images(title="metamorphic")), variant.batch, variant.precision, single)


def _compare(
    job: Job,
    variant: Variant,
    rows: np.ndarray,
    logits: np.ndarray,
    single: np.ndarray,
    tolerance: Tolerance,
    engine: str,
) -> Parity:
    """The file's logits against the module's with the same activation, and against the checkpoint's.

    `rows` says of which verification images they are, the first of them also run alone.
    """
    size = variant.batch or min(job.verification.batch, len(job.verification.indices))
    return parity.compare(
        logits,
        single,
        job.logits(variant.gelu)[rows],
        job.origin_logits[rows],
        job.verification.labels[rows] if job.labelled else None,
        split=job.verification.split.name,
        verified_on=job.verification.key,
        batches=(1, size) if len(single) else (size,),
        tolerance=tolerance,
        engine=engine,
    )


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
    good, bad = (job.folder, failed) if record.parity.passed else (failed, job.folder)
    good.mkdir(exist_ok=True)
    for made in record.files:
        source = path.with_name(made.path)
        with source.open("rb+") as file:
            os.fsync(file.fileno())
        source.chmod(0o644)
        source.replace(good / made.path)
    record.save((good / path.name).with_suffix(".json"))
    # The same variant's earlier file gave the other verdict: the newer one stands.
    for stale in (f"{path.stem}.json", *(made.path for made in record.files)):
        (bad / stale).unlink(missing_ok=True)

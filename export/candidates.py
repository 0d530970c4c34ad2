"""Both exporters' files of one model, compared on the reference images; the one taken is not exported again."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from export import engines, graph, parity, reference
from export.choice import Candidate, Choice, choose, said
from export.exporters import EXPORTERS, data_path
from export.job import Job
from export.pipeline import export_module
from export.precision import PRECISIONS
from export.reference import Verification
from export.variant import Variant
from trainers.manifest import CheckFailed, UserError


def settle(job: Job, variant: Variant, stack: contextlib.ExitStack, soon: Sequence[Verification] = ()) -> Choice:
    """The exporter of a plain fp32 variant, by comparing what the exporters write.

    New files wait for `pipeline.export` in a folder that goes with `stack`. Images that are needed `soon` are prepared
    meanwhile. Raises UserError when no exporter can write the model.
    """
    print(f"comparing the exporters: {', '.join(EXPORTERS)}", file=sys.stderr, flush=True)
    job.folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=job.folder, prefix=".export-")))
    verification = reference.choose_images(
        job.data.splits["test"], job.checkpoint.preprocess, reference.REFERENCE_IMAGES
    )
    images = list(reference.images(verification))
    expected = job.answers(variant.gelu, verification)
    variants = [replace(variant, exporter=exporter) for exporter in EXPORTERS]
    beside = ThreadPoolExecutor(1)  # an exporter keeps one core busy
    try:
        for chosen in soon:
            beside.submit(reference.prepare, chosen)  # what fails there fails again where the images are used
        judging = []
        for one in variants:
            path = scratch / f"{one.name(job.checkpoint.model)}.onnx"
            written = _write(job, one, path)
            judging.append(beside.submit(_candidate, job, one, path, *written, verification, images, expected))
        choice = choose([one.result() for one in judging], len(expected))
    finally:
        beside.shutdown(cancel_futures=True)  # Ctrl-C does not wait for what has not begun
    job.choices.update(dict.fromkeys(variants, choice))
    print(f"exporter {said(choice)}", file=sys.stderr, flush=True)
    return choice


def _write(job: Job, variant: Variant, path: Path) -> tuple[float, str]:
    """Export one file: the seconds it took, and why there is none."""
    began, refusal = time.perf_counter(), ""
    try:
        export_module(job, variant, path)
    except UserError as error:
        refusal = str(error)
    return time.perf_counter() - began, refusal


def _candidate(
    job: Job,
    variant: Variant,
    path: Path,
    seconds: float,
    refusal: str,
    verification: Verification,
    images: list[np.ndarray],
    expected: np.ndarray,
) -> Candidate:
    """Run and measure one file; a failure is its reason."""
    if refusal:
        return Candidate(exporter=variant.exporter, reason=refusal, seconds=seconds)
    try:
        graph.finish(path, path.stem, job.checkpoint)  # without dynamo's stack traces, which would count as its size
        logits, single = parity.run(engines.load(path), images, variant.batch)
    except (UserError, CheckFailed) as error:
        return Candidate(exporter=variant.exporter, reason=str(error), seconds=seconds)
    job.exported[variant], job.answered[variant] = path, (verification, logits)
    far = _error(np.concatenate([logits, single]), np.concatenate([expected, expected[: len(single)]]))
    tolerance = PRECISIONS["fp32"].tolerance.error
    assert tolerance is not None, "fp32 is judged by its error"
    operators = _operators(path)
    return Candidate(
        exporter=variant.exporter,
        reason="" if far <= tolerance else f"its error is {far:.1e} of the logits' deviation",
        nodes=sum(operators.values()),
        operators=operators,
        bytes=sum(file.stat().st_size for file in (path, data_path(path)) if file.is_file()),
        max_error=far,
        seconds=seconds,
    )


def _error(logits: np.ndarray, expected: np.ndarray) -> float:
    """The largest error, in standard deviations of what is expected; infinite where a logit is no number."""
    error = float(np.abs(logits - expected).max()) / max(float(expected.std()), 1e-30)
    return error if np.isfinite(error) else float(np.finfo(np.float32).max)


def _operators(path: Path) -> dict[str, int]:
    """How often each operator occurs in a file's graph."""
    import onnx

    nodes = onnx.load(path, load_external_data=False).graph.node
    return dict(sorted(Counter(node.op_type for node in nodes).items()))

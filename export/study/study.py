"""The way of one study: inputs seen -> each activation swapped, exported and looked at in its engines -> fine-tuned."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from export import parity, reference
from export.activations import EXACT
from export.artifact import Artifact
from export.job import Job
from export.pipeline import export
from export.study import engines, latency, seen
from export.study.distance import Distance, distance
from export.study.record import Accuracy, Row, Study
from export.study.tuning import tuned
from export.variant import Variant
from trainers.manifest import CheckFailed, environment, invocation

FOLDER = "gelu"
SEEN_IMAGES = 256  # of the validation split; each gives thousands of inputs


@dataclass(frozen=True, kw_only=True)
class Swapped:
    """What one activation left behind: its ONNX file and its logits, before and after the fine-tuning."""

    distance: Distance
    artifact: Artifact
    computed: dict[str, str]
    logits: np.ndarray
    after: np.ndarray | None


def study(job: Job, gelus: Sequence[str], steps: int, artifacts: Path) -> Study:
    """Study the checkpoint with each activation; `exact` comes first, as what all others are compared with.

    Raises UserError for an activation that cannot serve, CheckFailed for one whose ONNX file is not right.
    """
    gelus = [EXACT, *(name for name in dict.fromkeys(gelus) if name != EXACT)]
    folder = job.folder / FOLDER
    count = min(SEEN_IMAGES, job.verify_images)
    chosen = reference.choose_images(job.data.splits["val"], job.checkpoint.preprocess, count)
    histograms = seen.observe(job.checkpoint, job.source, folder, chosen, job.code)
    whole = seen.together(histograms.values())
    described = seen.describe(histograms, whole, chosen)
    points = np.asarray(described.points)
    distances = {name: distance(name, whole, points) for name in gelus}  # what cannot serve is refused before the work
    with tempfile.TemporaryDirectory() as scratch:
        bare = Path(scratch) / "bare.onnx"
        made = {name: _export(job, name) for name in gelus}
        places = engines.without_activation(job.folder / made[EXACT].file.path, bare)
        parts = {
            name: Swapped(
                distance=distances[name],
                artifact=made[name],
                computed=engines.computed(job.folder / made[name].file.path, bare),
                logits=job.logits(name),
                after=_tuned(job, name, steps, folder) if steps else None,
            )
            for name in gelus
        }
    files = {_stem(artifact): artifact.file.sha256 for artifact in made.values()}
    report, times = latency.read(artifacts, files)
    labels = job.verification.labels
    return Study(
        model=job.checkpoint.model,
        checkpoint_sha256=job.checkpoint.weights.sha256,
        data=job.data.info.name,
        split=job.verification.split.name,
        images=len(labels),
        places=places,
        seen=described,
        finetune_steps=steps,
        report=report,
        rows=tuple(
            _row(job, name, part, parts[EXACT], labels, times.get(_stem(part.artifact), {}))
            for name, part in parts.items()
        ),
        command=invocation(),
        environment=environment(),
    )


def _export(job: Job, gelu: str) -> Artifact:
    made = export(job, Variant(gelu=gelu))
    if not made.parity.passed:
        raise CheckFailed(f"{made.file.path}: differs from PyTorch: {made.parity.reason}")
    return made


def _tuned(job: Job, gelu: str, steps: int, folder: Path) -> np.ndarray:
    """The logits after the fine-tuning."""
    checkpoint, place = tuned(job, gelu, steps, folder)
    return reference.logits(checkpoint, place, place, gelu, job.verification)


def _stem(artifact: Artifact) -> str:
    return Path(artifact.file.path).stem


def _row(job: Job, gelu: str, part: Swapped, exact: Swapped, labels: np.ndarray, times: dict[str, float]) -> Row:
    change = np.abs(part.logits - exact.logits) / float(exact.logits.std())
    after = None
    if part.after is not None and exact.after is not None:
        after = accuracy(part.after, exact.after, labels)
    return Row(
        gelu=gelu,
        max_error=part.distance.largest,
        max_error_at=part.distance.at,
        mean_error=part.distance.mean,
        curve=tuple(float(y) for y in part.distance.curve),
        logit_max=float(change.max()),
        logit_mean=float(change.mean()),
        agreement=100 * float((part.logits.argmax(1) == exact.logits.argmax(1)).mean()),
        before=accuracy(part.logits, exact.logits, labels),
        after=after,
        artifact=part.artifact.file.path,
        nodes=len(onnx.load(job.folder / part.artifact.file.path).graph.node),
        engines=part.computed,
        latency_ms=times,
    )


def accuracy(logits: np.ndarray, base: np.ndarray, labels: np.ndarray) -> Accuracy:
    """Top-1 of logits (N, classes), and what was lost against `base` on the same images."""
    hits, before = logits.argmax(1) == labels, base.argmax(1) == labels
    drop, interval = parity.paired_drop(before, hits)
    return Accuracy(top1=100 * float(hits.mean()), drop=drop, interval=interval, p_value=parity.mcnemar(before, hits))

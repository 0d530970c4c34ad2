"""A short fine-tuning with another function in GELU's place: the checkpoint's own recipe at a tenth of its rate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import torch

from export.activations import make, shown, swap_gelu
from export.job import Job
from export.reference import Verification
from trainers import models
from trainers.checkpoint import Checkpoint, folder_name, load_model
from trainers.finetune import SLOWER
from trainers.manifest import UserError
from trainers.spec import Recipe
from trainers.train import Job as Training
from trainers.train import fit, pick_device, train


@dataclass(frozen=True)
class Part:
    """The verification images as a split of their own: judging the tuned model on more would be for nobody."""

    verification: Verification

    @property
    def name(self) -> str:
        return self.verification.split.name

    @property
    def labels(self) -> np.ndarray:
        return self.verification.labels

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.verification.split.shape

    @property
    def sha256(self) -> str:
        return self.verification.key

    def __len__(self) -> int:
        return len(self.verification.indices)

    def read(self, indices: np.ndarray) -> np.ndarray:
        return self.verification.split.read(self.verification.indices[indices])

    def stream(self, order: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        return self.verification.split.stream(self.verification.indices[indices] for indices in order)


def tuned(job: Job, gelu: str, steps: int, folder: Path) -> tuple[Checkpoint, Path]:
    """The checkpoint after `steps` steps with this activation, and its folder; made once.

    Every activation gets the same images in the same order. Its record does not know the activation: export it with
    the same `--gelu`. Raises UserError when the activation has no gradient.
    """
    _differentiable(gelu)
    record, device = job.checkpoint, pick_device("auto")
    origin = record.weights.sha256[:8] + (f"-{job.code[:8]}" if job.code else "")
    target = folder / f"{folder_name(gelu)}-{steps}-steps-of-{origin}"
    training = Training(
        model=record.model,
        options=record.options,
        recipe=fit(recipe(record, steps), device),
        input_shape=record.input_shape,
        start=lambda: swap_gelu(load_model(record, job.source), gelu).train(),
        started_from=record.weights,
    )
    splits = {**job.data.splits, "test": Part(job.verification)}
    data = replace(job.data, mean=record.preprocess.mean, std=record.preprocess.std, splits=splits)
    # An interrupted run goes on, and a finished one is not run again.
    return train(training, models.get(record.model), data, device, target, resume=target.is_dir()), target


def recipe(record: Checkpoint, steps: int) -> Recipe:
    """The checkpoint's own, at a tenth of its rate."""
    return msgspec.structs.replace(
        record.recipe, steps=steps, sizes=None, lr=record.recipe.lr / SLOWER, schedule="cosine", warmup=0.1, ema=0.0,
        init="default", compile=False, shard=False,
    )  # fmt: skip


def _differentiable(gelu: str) -> None:
    x = torch.linspace(-3, 3, 61).view(1, 1, 1, -1).requires_grad_()
    y = make(gelu)(x.clone())
    gradient = torch.autograd.grad(y.sum(), x)[0] if y.requires_grad else None
    if gradient is None or not gradient.isfinite().all():
        raise UserError(f"{shown(gelu)} has no finite gradient, so it cannot be fine-tuned; leave --finetune-steps out")

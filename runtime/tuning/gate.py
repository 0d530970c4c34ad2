"""Gate: what a candidate costs in accuracy, on validation images, in the very engine and settings that are timed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from export import parity, reference
from export.job import Job
from export.reference import Verification
from runtime.api import load
from runtime.targets import Target
from runtime.tuning.accuracy import Accuracy


class Gate:
    """The images, and PyTorch's answers to them, computed once."""

    def __init__(self, job: Job, images: int | None) -> None:
        self._job = job
        self._chosen: Verification = reference.choose_images(job.data.splits["val"], job.checkpoint.preprocess, images)

    def judge(self, target: Target, backend: str, options: Mapping[str, str], device: str, threads: int) -> Accuracy:
        """Run the file over the images. Raises UserError and BackendError when it cannot be loaded or run."""
        record = target.found.record
        assert record is not None, "a form of ours has a record"
        size = target.input_shape[0] or self._chosen.batch
        title = f"{target.subject.name} in {backend}"
        batches = reference.images(self._chosen, title=title, dtype=record.variant.input_dtype)
        with load(target.found.path, backend=backend, device=device, threads=threads, batch=size, **options) as model:
            parts = [model(part)[:kept] for whole in batches for part, kept in parity.fitted(whole, size)]
        top, expected = np.concatenate(parts).argmax(1), self._expected
        same = top == expected
        if self._job.labelled:
            labels = self._chosen.labels
            drop, interval = parity.paired_drop(expected == labels, top == labels)
        else:
            drop, interval = parity.paired_drop(np.full(len(same), True), same)
        return Accuracy(split=self._chosen.split.name, images=len(top), drop=drop, drop_interval=interval,
                        agreement=100 * float(same.mean()), labelled=self._job.labelled)  # fmt: skip

    @property
    def perfect(self) -> Accuracy:
        """That of the checkpoint in PyTorch itself."""
        return Accuracy(split=self._chosen.split.name, images=len(self._chosen.indices), drop=0.0,
                        drop_interval=(0.0, 0.0), agreement=100.0, labelled=self._job.labelled)  # fmt: skip

    @cached_property
    def _expected(self) -> np.ndarray:
        """The class that PyTorch (or the ONNX file given) puts first, in fp32 and with the model's own activations."""
        job = self._job
        if job.file is not None:
            logits = job.answers("exact", self._chosen)
        else:
            logits = reference.logits(job.origin, job.source, job.folder, "exact", self._chosen)
        first: np.ndarray = logits.argmax(1)
        return first

"""Judge: how far a quantized form is from the fp32 file, on the same images in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime

from export import parity, reference
from export.search.records import Scores
from trainers.manifest import CheckFailed

if TYPE_CHECKING:
    import onnx

    from export.reference import Verification


@dataclass(frozen=True, kw_only=True)
class Judge:
    """The images, prepared once, and the fp32 file's logits (N, classes) on them."""

    images: np.ndarray  # float32 (at least N, C, H, W), filled up to whole batches
    batch: int
    labels: np.ndarray | None  # (N,); None where they are not the model's classes
    logits: np.ndarray
    target: str

    def __call__(self, model: onnx.ModelProto) -> Scores:
        """Compare a quantized form with the fp32 file. Raises CheckFailed when its outputs are not finite."""
        logits = _run(model.SerializeToString(), self.images, self.batch, self.target)[: len(self.logits)]
        if not np.isfinite(logits).all():
            raise CheckFailed("a quantized form gives outputs that are not finite; look at the calibration images")
        top, expected = logits.argmax(1), self.logits.argmax(1)
        disagreement, disagreement_interval = parity.paired_drop(np.full(len(top), True), top == expected)
        scores = Scores(
            kl=parity.divergence(self.logits, logits),
            cosine=parity.mean_cosine(logits, self.logits),
            disagreement=disagreement,
            disagreement_interval=disagreement_interval,
        )
        if self.labels is None:
            return scores
        drop, interval = parity.paired_drop(expected == self.labels, top == self.labels)
        return scores.with_drop(drop, interval)

    @property
    def accuracy(self) -> float | None:
        """Percent of the images that the fp32 file gets right; None without labels."""
        return None if self.labels is None else 100 * float((self.logits.argmax(1) == self.labels).mean())


@contextmanager
def open_judge(
    source: Path, chosen: Verification, *, batch: int | None, labelled: bool, target: str, dtype: str = "float32"
) -> Iterator[Judge]:
    """Prepare the images on disk, which memory need not hold, and run the fp32 file over them."""
    size = batch or chosen.batch
    count = len(chosen.indices)
    with TemporaryDirectory() as folder:
        prepared = _prepared(Path(folder) / "images.npy", chosen, -(-count // size) * size, dtype)
        yield Judge(
            images=prepared,
            batch=size,
            labels=chosen.labels if labelled else None,
            logits=_run(source, prepared, size, target)[:count],
            target=target,
        )


def _prepared(path: Path, chosen: Verification, rows: int, dtype: str) -> np.ndarray:
    """The chosen images as one array (rows, C, H, W) on disk; rows beyond them stay zero."""
    filled, array = 0, None
    for batch in reference.images(chosen, title="images", dtype=dtype):
        if array is None:
            array = np.lib.format.open_memmap(path, "w+", batch.dtype, (rows, *batch.shape[1:]))
        array[filled : filled + len(batch)] = batch
        filled += len(batch)
    assert array is not None, "there is at least one image"
    return array


def _run(model: bytes | Path, images: np.ndarray, batch: int, target: str) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # ONNX Runtime would round the biases that a placement for TensorRT leaves in float.
    skipped = ["WeightBiasQuantization"] if target == "tensorrt" else []
    session = onnxruntime.InferenceSession(
        str(model) if isinstance(model, Path) else model,
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=skipped,
    )
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: images[i : i + batch]})[0] for i in range(0, len(images), batch)]
    return np.concatenate(parts)

"""The images that set quantization ranges: chosen by seed from the training split, handed over batch by batch.

`auto` quantizes with every method and keeps the one whose answers on held-out images are nearest to the fp32 file's.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from export import engines, parity
from export.precision import Conversion, convert
from export.reference import Verification, choose_images, images
from export.variant import Calibration, Tried, Variant
from trainers.dataset import Dataset
from trainers.manifest import UserError
from trainers.spec import Preprocess

SEED = 0
HELD_OUT = 256  # images of the val split that `auto` decides on
MANY_CLASSES = 10  # from here on, images of a single class say little about the others


def choose(
    data: Dataset, preprocess: Preprocess, count: int, method: str = "minmax", labelled: bool = True
) -> tuple[Verification, Calibration]:
    """`count` training images and their description; none of them is opened."""
    split = data.splits["train"]
    indices = np.sort(np.random.default_rng(SEED).permutation(len(split))[:count])
    digest = hashlib.sha256(split.sha256.encode() + indices.tobytes()).hexdigest()
    described = Calibration(
        method=method, images=len(indices), source=data.info.name, sha256=digest,
        classes=len(np.unique(split.labels[indices])) if labelled else None,
    )  # fmt: skip
    return Verification(split=split, indices=indices, preprocess=preprocess), described


def check(chosen: Verification, described: Calibration, classes: int) -> None:
    """Raise UserError when the chosen images could not set any range; say where they are all of one class."""
    pixels = chosen.split.read(chosen.indices[:64])
    if len(pixels) == 0 or pixels.min() == pixels.max():
        raise UserError(
            "the calibration images are all one colour, so they set no range; give real images with --calibration-data"
        )
    if described.classes == 1 and classes >= MANY_CLASSES:
        print(
            f"note: all {described.images} calibration images are of one class; ranges will not fit the other "
            f"{classes - 1}",
            file=sys.stderr,
        )


def stream(chosen: Verification, batch: int | None = None, dtype: str = "float32") -> Iterator[np.ndarray]:
    """The calibration images as (N, C, H, W) batches, of exactly `batch` where a file takes no other."""
    for whole in images(chosen, title="calibrate", dtype=dtype):
        yield from (part for part, _ in parity.fitted(whole, batch))


def held_out(data: Dataset, preprocess: Preprocess) -> Verification:
    """The images that methods are compared on: neither calibrated with nor verified on."""
    return choose_images(data.splits["val"], preprocess, HELD_OUT)


def try_methods(
    methods: Sequence[str],
    variant: Variant,
    parent: Path,
    conversion: Callable[[str], Conversion],
    judged_on: Verification,
) -> tuple[Tried, ...]:
    """Quantize `parent` with each method and compare the answers with its own, the best first.

    Raises CheckFailed when the graph cannot be quantized.
    """

    def logits(path: Path, form: tuple[str, str | None] = ("fp32", None)) -> np.ndarray:
        batches = images(judged_on, title=f"try {path.stem}", dtype=variant.input_dtype)
        return parity.run(engines.load(path, *form), batches, variant.batch)[0]

    expected, tried = logits(parent), []
    with tempfile.TemporaryDirectory(dir=parent.parent, prefix=".export-") as folder:
        for method in methods:
            path = Path(folder) / f"{method}{engines.suffix(variant.target)}"
            convert(variant.precision, parent, path, conversion(method))
            answers = logits(path, (variant.precision, variant.target))
            tried.append(
                Tried(method=method, divergence=parity.divergence(expected, answers),
                      agreement=100 * float((answers.argmax(1) == expected.argmax(1)).mean()), images=len(answers))
            )  # fmt: skip
    return tuple(sorted(tried, key=lambda one: one.divergence))


def decided(asked: Calibration, tried: tuple[Tried, ...]) -> Calibration:
    """The calibration with the best of the methods that were tried."""
    return msgspec.structs.replace(asked, method=tried[0].method, tried=tried)

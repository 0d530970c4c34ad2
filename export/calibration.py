"""The images that set quantization ranges: chosen by seed from the training split, handed over batch by batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from export.reference import Verification, images
from export.variant import Calibration
from trainers.dataset import Dataset
from trainers.manifest import UserError
from trainers.spec import Preprocess

SEED = 0


def choose(data: Dataset, preprocess: Preprocess, count: int) -> tuple[Verification, Calibration]:
    """`count` training images and their description; none of them is opened."""
    split = data.splits["train"]
    indices = np.sort(np.random.default_rng(SEED).permutation(len(split))[:count])
    digest = hashlib.sha256(split.sha256.encode() + indices.tobytes()).hexdigest()
    described = Calibration(method="minmax", images=len(indices), source=data.info.name, sha256=digest)
    return Verification(split=split, indices=indices, preprocess=preprocess), described


def check(chosen: Verification) -> None:
    """Raise UserError when the chosen images could not set any range."""
    pixels = chosen.split.read(chosen.indices[:64])
    if len(pixels) == 0 or pixels.min() == pixels.max():
        raise UserError(
            "the calibration images are all one colour, so they set no range; give real images with --calibration-data"
        )


def stream(chosen: Verification) -> Iterator[np.ndarray]:
    """The calibration images as float32 (N, C, H, W) batches, with a progress bar."""
    return images(chosen, title="calibrate")

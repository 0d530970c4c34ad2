"""One picture to a model's input, and its logits to words; without PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from export.images import stored_shape
from export.pixels import normalise
from trainers.encoded import fit, read_image

if TYPE_CHECKING:
    from PIL.Image import Image

    from export.artifact import Artifact


def prepared(image: str | Path | Image, record: Artifact) -> np.ndarray:
    """The model's input [1, C, H, W], of the type that the file takes. Raises UserError on what is no image."""
    channels = record.inputs[0].shape[1]
    assert channels is not None, "only the batch size of an artifact is free"
    _, height, width = stored_shape(channels, record.preprocess)
    shape = height, width, channels
    picture = read_image(Path(image), shape) if isinstance(image, str | Path) else fit(image, shape)
    rows, columns = record.preprocess.size
    top, left = (height - rows) // 2, (width - columns) // 2
    pixels = picture[top : top + rows, left : left + columns].transpose(2, 0, 1)[None]
    return pixels if record.variant.input_dtype == "uint8" else normalise(pixels, record.preprocess)


def ranked(logits: np.ndarray, classes: Sequence[str], top: int) -> list[tuple[str, float]]:
    """The `top` likeliest classes and their probabilities, the softmax of `logits` [classes]."""
    shares = np.exp(logits.astype(np.float64) - logits.max())
    shares /= shares.sum()
    return [(classes[index], float(shares[index])) for index in np.argsort(-shares, kind="stable")[:top]]

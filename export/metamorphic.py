"""What must hold whatever the model is: an image's logits depend on that image alone.

An exporter that took the traced batch for a constant, folded a batch's statistics or lost the order of rows breaks one
of these, though a comparison at one batch size may not show it. Nothing here imports numpy: the result is part of
every record.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from trainers.manifest import Struct

if TYPE_CHECKING:
    import numpy as np

IMAGES = 8
SIZES = (2, 3, 5)  # the exporters trace a batch of 2
# Largest difference allowed, in standard deviations of the logits. Floats are summed in another order at another
# batch size; where values are rounded to fewer bits, such a difference can tip a value to its neighbour, and on from
# there. int8-dynamic takes the range of its activations from the batch as a whole, so other images do change a row:
# there only a row that got lost is wrong.
TOLERANCES = {"fp32": 1e-3, "int8-dynamic": 1.0}
ROUNDED = 0.25  # all other precisions


class Metamorphic(Struct, frozen=True, kw_only=True):
    """Largest differences, in standard deviations of the logits; None where a fixed batch leaves nothing to compare."""

    images: int
    tolerance: float
    equal_rows: float | None  # the same image in every row: the rows' logits
    permuted: float | None  # the images in another order: their logits in that order
    alone: float | None  # images alone, against the same images in one batch
    sizes: float | None  # batches of SIZES, against the images alone
    broken: str  # which of them, with its figure; empty when all hold


def check(
    infer: Callable[[np.ndarray], np.ndarray], images: np.ndarray, batch: int | None, precision: str
) -> Metamorphic:
    """Check a file by `infer`, from images (N, C, H, W) to logits (N, classes); `batch` is its fixed batch or None."""
    import numpy as np

    images = np.resize(images[:IMAGES], (batch or IMAGES, *images.shape[1:]))  # fewer are repeated
    whole = infer(images)
    scale = max(float(whole.std()), 1e-30)

    def far(a: np.ndarray, b: np.ndarray) -> float:
        error = float(np.abs(a - b).max()) / scale
        return error if np.isfinite(error) else float(np.finfo(np.float32).max)

    found: dict[str, float | None] = dict.fromkeys(("equal_rows", "permuted", "alone", "sizes"))
    if len(images) > 1:
        same = infer(np.repeat(images[:1], len(images), axis=0))
        found["equal_rows"] = far(same, np.repeat(whole[:1], len(images), axis=0))
        order = np.roll(np.arange(len(images)), 1)  # no row keeps its place
        found["permuted"] = far(infer(images[order]), whole[order])
    if batch is None:
        alone = np.concatenate([infer(image[None]) for image in images])
        found["alone"] = far(whole, alone)
        found["sizes"] = max(far(infer(images[:size]), alone[:size]) for size in SIZES)
    tolerance = TOLERANCES.get(precision, ROUNDED)
    wrong = [f"{name} {value:.2g}" for name, value in found.items() if value is not None and not value <= tolerance]
    broken = (
        f"a row's logits depend on the other rows: {', '.join(wrong)} of the logits' deviation, beyond {tolerance:g}"
        if wrong
        else ""
    )
    return Metamorphic(images=len(images), tolerance=tolerance, broken=broken, **found)

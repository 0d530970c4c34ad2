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
    infer: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    batch: int | None,
    precision: str,
    alone: np.ndarray | None = None,
) -> Metamorphic:
    """Check a file by `infer`, from images (N, C, H, W) to logits (N, classes); `batch` is its fixed batch or None.

    `alone` are its logits for the first of the images one by one, where they are known.
    """
    import numpy as np

    from export.engines import each

    known = 0 if alone is None else len(alone)
    images = np.resize(images[:IMAGES], (batch or IMAGES, *images.shape[1:]))  # fewer are repeated
    order = np.roll(np.arange(len(images)), 1)  # no row keeps its place
    asked = {"whole": images}
    if len(images) > 1:
        asked |= {"equal_rows": np.repeat(images[:1], len(images), axis=0), "permuted": images[order]}
    if batch is None:
        asked |= {f"first {size}": images[:size] for size in SIZES}
        asked |= {f"alone {index}": images[index : index + 1] for index in range(known, len(images))}
    answers = dict(zip(asked, each(infer, asked.values()), strict=True))
    whole = answers["whole"]
    scale = max(float(whole.std()), 1e-30)

    def far(a: np.ndarray, b: np.ndarray) -> float:
        error = float(np.abs(a - b).max()) / scale
        return error if np.isfinite(error) else float(np.finfo(np.float32).max)

    found: dict[str, float | None] = dict.fromkeys(("equal_rows", "permuted", "alone", "sizes"))
    if len(images) > 1:
        found["equal_rows"] = far(answers["equal_rows"], np.repeat(whole[:1], len(images), axis=0))
        found["permuted"] = far(answers["permuted"], whole[order])
    if batch is None:
        rest = [answers[f"alone {index}"] for index in range(known, len(images))]
        singly = np.concatenate([*([] if alone is None else [alone]), *rest])
        found["alone"] = far(whole, singly)
        found["sizes"] = max(far(answers[f"first {size}"], singly[:size]) for size in SIZES)
    tolerance = TOLERANCES.get(precision, ROUNDED)
    wrong = [f"{name} {value:.2g}" for name, value in found.items() if value is not None and not value <= tolerance]
    broken = (
        f"a row's logits depend on the other rows: {', '.join(wrong)} of the logits' deviation, beyond {tolerance:g}"
        if wrong
        else ""
    )
    return Metamorphic(images=len(images), tolerance=tolerance, broken=broken, **found)

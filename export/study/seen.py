"""What a model's GELUs get as input: a histogram a layer, counted while real images pass."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from export.activations import is_gelu
from export.reference import Verification, images
from export.study.record import PERCENTILES, Layer, Seen
from trainers.checkpoint import Checkpoint, load_model
from trainers.manifest import UserError, atomic

BINS = 4096
NARROWEST = 8.0  # the first histogram spans [-8, 8]
EXACTLY_COUNTED = 1 << 24  # histc counts in float32
POINTS, SHOWN = 401, 8.0  # curves are drawn over what was seen, at most [-8, 8]: beyond, all are straight lines


class Histogram:
    """Counts of a stream of values in equal bins over [-half, half], which doubles when a value lies outside."""

    def __init__(self, counts: Tensor | None = None, half: float = NARROWEST) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.int64) if counts is None else counts
        self.half, self.low, self.high = half, math.inf, -math.inf

    def add(self, values: Tensor) -> None:
        """Count all elements. Raises UserError when one is not finite."""
        low, high = (float(end) for end in values.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise UserError("a GELU of this model gets inputs that are not finite; train it again")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.widen(max(-low, high))
        for part in values.float().flatten().split(EXACTLY_COUNTED):
            self.counts += torch.histc(part, BINS, -self.half, self.half).long()

    def widen(self, reach: float) -> None:
        """Double the range until it holds `reach`: two bins become one, and empty ones come on either side."""
        while self.half < reach:
            self.counts = nn.functional.pad(self.counts.view(-1, 2).sum(1), (BINS // 4, BINS // 4))
            self.half *= 2

    def centres(self) -> np.ndarray:
        """The middle of each bin."""
        return np.asarray((np.arange(BINS) + 0.5) * (2 * self.half / BINS) - self.half)

    def weights(self) -> np.ndarray:
        """The share of the values in each bin."""
        return np.asarray(self.counts.numpy() / max(1, int(self.counts.sum())))

    def layer(self, name: str) -> Layer:
        """The range, and percentiles to within a bin."""
        places = np.searchsorted(np.cumsum(self.weights()), np.asarray(PERCENTILES) / 100)
        found = self.centres()[np.minimum(places, BINS - 1)].clip(self.low, self.high)
        return Layer(
            name=name, values=int(self.counts.sum()), low=self.low, high=self.high,
            percentiles=tuple(float(value) for value in found),
        )  # fmt: skip


def observe(
    checkpoint: Checkpoint, source: Path, folder: Path, chosen: Verification, code: str | None
) -> dict[str, Histogram]:
    """The histogram of every GELU's inputs on these images; kept in `folder` under a name made of all inputs.

    `code` is the digest of the user's own model file, if the weights are of one.
    """
    from safetensors.torch import load_file, save_file

    digest = hashlib.sha256(f"{checkpoint.weights.sha256} {code} {chosen.key} {BINS}".encode()).hexdigest()
    path = folder / f"seen-{digest[:24]}.safetensors"
    module = load_model(checkpoint, source)
    names = [name for name, part in module.named_modules() if is_gelu(part)]
    if path.is_file():
        kept = load_file(path)
        return dict(zip(names, map(_restored, kept["counts"], kept["ranges"]), strict=True))
    layout = torch.channels_last if checkpoint.recipe.channels_last else torch.contiguous_format
    found = _watch(module.to(memory_format=layout), names, chosen, layout)
    tensors = {
        "counts": torch.stack([one.counts for one in found.values()]),
        "ranges": torch.tensor([(one.half, one.low, one.high) for one in found.values()], dtype=torch.float64),
    }
    with atomic(path) as temporary:
        save_file(tensors, temporary)
    return found


def _restored(counts: Tensor, ranges: Tensor) -> Histogram:
    made = Histogram(counts, float(ranges[0]))
    made.low, made.high = float(ranges[1]), float(ranges[2])
    return made


@torch.inference_mode()
def _watch(
    module: nn.Module, names: list[str], chosen: Verification, layout: torch.memory_format
) -> dict[str, Histogram]:
    found = {name: Histogram() for name in names}
    for name in names:
        module.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, histogram=found[name]: histogram.add(inputs[0])  # type: ignore[misc]
        )
    for batch in images(chosen, title="GELU inputs"):
        module(torch.from_numpy(batch).contiguous(memory_format=layout))
    return found


def together(histograms: Iterable[Histogram]) -> Histogram:
    """One histogram of all values."""
    parts = list(histograms)
    whole = Histogram(half=max(part.half for part in parts))
    whole.low, whole.high = min(part.low for part in parts), max(part.high for part in parts)
    for part in parts:
        same = Histogram(part.counts, part.half)
        same.widen(whole.half)
        whole.counts = whole.counts + same.counts
    return whole


def describe(found: dict[str, Histogram], whole: Histogram, chosen: Verification) -> Seen:
    """The histograms as a record holds them."""
    points = np.linspace(max(whole.low, -SHOWN), min(whole.high, SHOWN), POINTS)
    density = np.interp(points, whole.centres(), whole.weights() * BINS / (2 * whole.half))
    return Seen(
        split=chosen.split.name,
        images=len(chosen.indices),
        whole=whole.layer("all"),
        layers=tuple(histogram.layer(name) for name, histogram in found.items()),
        points=tuple(float(x) for x in points),
        density=tuple(float(y) for y in density),
    )

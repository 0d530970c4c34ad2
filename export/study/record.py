"""Study: what was found out about a model's GELU and what may stand in for it."""

from __future__ import annotations

from typing import ClassVar

from export.activations import EXACT, shown
from trainers.manifest import Environment, Record, Struct

PERCENTILES = (0.1, 1.0, 50.0, 99.0, 99.9)


class Layer(Struct, frozen=True, kw_only=True):
    """What one GELU, or all together, got as input."""

    name: str
    values: int
    low: float
    high: float
    percentiles: tuple[float, ...]  # those of PERCENTILES


class Seen(Struct, frozen=True, kw_only=True):
    """The inputs of all GELUs on images of the validation split."""

    split: str
    images: int
    whole: Layer
    layers: tuple[Layer, ...]
    points: tuple[float, ...]  # where the curves are drawn, within the range seen
    density: tuple[float, ...]  # share of the inputs a unit of x, at the points


class Accuracy(Struct, frozen=True, kw_only=True):
    """Top-1 in percent; points lost against another module on the same images, with the paired 95% interval.

    `p_value` is McNemar's: how likely such a difference is by chance alone.
    """

    top1: float
    drop: float
    interval: tuple[float, float]
    p_value: float


class Row(Struct, frozen=True, kw_only=True):
    """One activation in GELU's place."""

    gelu: str  # as in a Variant
    max_error: float  # the largest distance from GELU over the range seen
    max_error_at: float
    mean_error: float  # the mean distance from GELU over the inputs seen
    curve: tuple[float, ...]  # the activation minus GELU at the points
    logit_max: float  # the largest and the mean change of a logit, in standard deviations of the exact logits
    logit_mean: float
    agreement: float  # percent of the images whose top-1 stays
    before: Accuracy  # swapped and no more; against the checkpoint
    after: Accuracy | None  # after the fine-tuning; against exact GELU, fine-tuned alike
    artifact: str
    nodes: int  # of the ONNX file
    engines: dict[str, str]  # what an engine computes in GELU's place
    latency_ms: dict[str, float]  # by engine, the median of the latest report, at batch 1

    @property
    def name(self) -> str:
        return shown(self.gelu)

    @property
    def is_exact(self) -> bool:
        return self.gelu == EXACT


class Study(Record, frozen=True, kw_only=True):
    """All activations on one checkpoint."""

    SCHEMA: ClassVar[int] = 1

    model: str
    checkpoint_sha256: str
    data: str
    split: str  # that accuracy was measured on
    images: int
    places: int  # GELUs in the graph
    seen: Seen
    finetune_steps: int  # 0: none
    report: str | None  # the report of `python -m runtime bench` that latencies were read from
    rows: tuple[Row, ...]
    command: str
    environment: Environment

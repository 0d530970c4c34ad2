"""What is measured of layers and of assignments, and the records that keep it. Nothing here imports a framework."""

from __future__ import annotations

import hashlib
import math
from typing import ClassVar, Literal

import msgspec

from export.variant import Calibration
from trainers.manifest import Environment, Record, Struct

Interval = tuple[float, float]
Measure = Literal["accuracy", "agreement"]  # what a budget counts points of


class Scores(Struct, frozen=True, kw_only=True):
    """How far a quantized form is from the fp32 file on the same images.

    `kl`: KL(softmax of fp32 || softmax of int8), in nats, the mean over the images. `cosine`: mean, of the logits.
    `disagreement`: percent of images whose top-1 differs. `drop`: points of top-1 accuracy lost. Intervals are 95%,
    paired.
    """

    kl: float
    cosine: float
    disagreement: float
    disagreement_interval: Interval
    drop: float | None = None  # None where the images have no labels of the model's classes
    drop_interval: Interval | None = None

    def with_drop(self, drop: float, interval: Interval) -> Scores:
        """The same with what labels tell."""
        return msgspec.structs.replace(self, drop=drop, drop_interval=interval)


class LayerDamage(Struct, frozen=True, kw_only=True):
    """One layer quantized alone: what it costs in accuracy and saves in time."""

    name: str  # of the node in the quantized file
    source: str | None  # of the node in the fp32 file, where it has one
    operator: str
    weight: str  # the name of its weight, which tells where in the model it stands; empty without one
    scores: Scores
    saved: float = 0.0  # seconds a run; negative where int8 is slower
    estimated: bool = True  # whether `saved` rests on FLOPs and bytes rather than on measured times

    @property
    def rate(self) -> float:
        """Damage (nats) by second saved: what is restored first has most. Infinite where nothing is saved."""
        return self.scores.kl / self.saved if self.saved > 0 else math.inf


class Trial(Struct, frozen=True, kw_only=True):
    """One assignment that was tried: the layers kept in float, all others being int8."""

    kept: tuple[str, ...]
    scores: Scores
    seconds: float | None = None  # of one run of the model, by the costs


class Basis(Struct, frozen=True, kw_only=True):
    """What measurements of quantized forms depend on: the same basis gives the same figures."""

    source: str  # sha256 of the fp32 file
    target: str
    calibration: Calibration
    images: int
    split: str
    verified_on: str  # digest of these images and their preparation
    labelled: bool  # whether their labels are the model's classes
    program: str  # this program's version: another may place otherwise

    @property
    def key(self) -> str:
        """A short digest for file names."""
        return digest(self)


class Sensitivity(Record, frozen=True, kw_only=True):
    """Every layer of a file quantized alone; the one that damages most by second saved first."""

    SCHEMA: ClassVar[int] = 1

    model: str
    file: str  # the fp32 file's name
    basis: Basis
    costs: tuple[str, ...]  # sha256 of the profiles; none: saved times are estimates
    layers: tuple[LayerDamage, ...]
    seconds: float  # what the measurement took
    environment: Environment


class Search(Record, frozen=True, kw_only=True):
    """A search for the assignment that saves most time within a budget, with all that it tried."""

    SCHEMA: ClassVar[int] = 1

    model: str
    file: str
    basis: Basis
    costs: tuple[str, ...]
    max_drop: float  # points of what `measure` says
    measure: Measure
    layers: tuple[LayerDamage, ...]  # the ranking that it went by
    slower: tuple[str, ...]  # layers left in float from the start: int8 would be slower
    tried: tuple[Trial, ...]  # in order
    kept: tuple[str, ...]  # the assignment chosen
    seconds: float
    environment: Environment

    @property
    def chosen(self) -> Trial:
        """What was measured of the assignment chosen."""
        return next(trial for trial in self.tried if set(trial.kept) == set(self.kept))

    def lost(self, trial: Trial) -> tuple[float, Interval]:
        """Points that count against the budget, with their interval."""
        return loss(trial.scores, self.measure)


def loss(scores: Scores, measure: Measure) -> tuple[float, Interval]:
    """Points of accuracy lost, or, where labels cannot tell, percent of images whose top-1 changed."""
    if measure == "agreement":
        return scores.disagreement, scores.disagreement_interval
    assert scores.drop is not None and scores.drop_interval is not None, "accuracy needs labels"
    return scores.drop, scores.drop_interval


def digest(*values: object) -> str:
    """The first digits of the sha256 of values in JSON."""
    return hashlib.sha256(msgspec.json.encode(values)).hexdigest()[:10]

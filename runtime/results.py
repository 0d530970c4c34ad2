"""Cell, Measurement and Report: what was measured. Raw samples are kept; statistics are derived on reading."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar

import msgspec

from export.variant import Variant
from runtime import machine, stats
from runtime.attestation import Ran
from runtime.check import Check
from runtime.machine import State
from runtime.plan import Plan
from trainers.manifest import Environment, Record, Struct
from trainers.stats import Estimate

T = TypeVar("T")

LEAST_FLOOR = 0.01  # no two rows are called different by less than this, however quiet the machine


class Subject(Struct, frozen=True, kw_only=True):
    """An artifact as the report needs it. `model` groups what can be compared; no `variant`: nobody vouches for it."""

    name: str
    model: str
    path: str
    bytes: int
    sha256: str
    variant: Variant | None
    passed: bool  # its record says that it keeps within its precision's tolerance
    drop: float | None  # percentage points of top-1 against the checkpoint; None where it is not known
    drop_interval: tuple[float, float] | None

    @property
    def is_exact_fp32(self) -> bool:
        """The checkpoint's own arithmetic."""
        return self.variant is not None and self.variant.precision == "fp32" and self.variant.gelu == "exact"

    @property
    def is_own_function(self) -> bool:
        """Whether its activations are the model's own, exact or rounded."""
        return self.variant is None or self.variant.gelu == "exact"


class Conditions(NamedTuple):
    """What two rows must share to be compared."""

    device: str
    batch: int
    threads: int
    regime: str


class Cell(Struct, frozen=True, kw_only=True):
    """One row: an artifact in an engine at a batch size, measured in a regime (see runtime/measure.py)."""

    artifact: str  # a Subject's name
    backend: str
    device: str
    batch: int
    threads: int
    options: dict[str, str] = msgspec.field(default_factory=dict)
    regime: str = "device"
    twin: bool = False  # the baseline once more, in a worker of its own: the run's A/A pair

    @property
    def engine(self) -> str:
        return engine_name(self.backend, self.options)

    @property
    def conditions(self) -> Conditions:
        return Conditions(self.device, self.batch, self.threads, self.regime)


class Measurement(Struct, frozen=True, kw_only=True):
    """What one cell took, in seconds; `rounds_s` holds every sample of every round. `error` says why there is none."""

    cell: Cell
    rounds_s: tuple[tuple[float, ...], ...] = ()
    processes: tuple[int, ...] = ()  # by which process each round was taken; none noted: all by one
    rounds: int = 0  # there are to be in all; 0 where that was not settled
    build_s: float | None = None  # compiling
    load_s: float | None = None  # all else before the first inference
    first_s: float | None = None  # the first inference, copies included
    peak_bytes: int | None = None  # resident memory of the worker process
    joules: float | None = None  # of the whole processor, an inference; None where the machine has no such counter
    warm_samples: int | None = None  # thrown away before the first round
    steady: bool | None = None  # whether the warm-up ended because the times had settled
    heat: int = 0  # rows of one heat took turns with each other: where memory does not hold all workers
    attested: dict[str, str] = msgspec.field(default_factory=dict)  # what the engine said about itself
    ran: Ran | None = None  # what it was seen to execute
    shortfall: str | None = None  # what ran otherwise than the artifact's record says
    check: Check | None = None
    error: str | None = None

    @property
    def valid(self) -> bool:
        return self.error is None and bool(self.rounds_s)

    @property
    def median(self) -> Estimate:
        """Seconds an inference of the whole batch."""
        return stats.median(self.rounds_s, self.processes)

    @property
    def samples(self) -> int:
        return sum(map(len, self.rounds_s))

    def percentile(self, q: float) -> float | None:
        """Seconds; None where there are too few samples to say."""
        return stats.percentile(stats.pooled(self.rounds_s), q)


class Report(Record, frozen=True, kw_only=True):
    """One run of `bench`."""

    SCHEMA: ClassVar[int] = 2

    environment: Environment
    command: str
    plan: Plan
    seconds: float  # spent in all
    subjects: tuple[Subject, ...]
    measurements: tuple[Measurement, ...]
    unavailable: dict[str, str]  # backend: why it could not run
    stale: tuple[str, ...] = ()  # artifacts of an older checkpoint, left out
    left_out: tuple[str, ...] = ()  # artifacts that --quick did not choose
    states: tuple[State, ...] = ()  # of the machine, between the rounds
    complete: bool = True  # whether every round was run

    def __post_init__(self) -> None:
        """Raise ValueError on rows that cannot be what a run has left."""
        names = {subject.name for subject in self.subjects}
        for row in self.measurements:
            if row.cell.artifact not in names:
                raise ValueError(f"a row of {row.cell.artifact}, which is no subject of it")
            if row.processes and len(row.processes) != len(row.rounds_s):
                raise ValueError(f"{row.cell.artifact}: {len(row.rounds_s)} rounds, of {len(row.processes)} processes")
            if not all(part and all(0 < sample < math.inf for sample in part) for part in row.rounds_s):
                raise ValueError(f"{row.cell.artifact}: a round without samples, or a sample that is no time")

    @classmethod
    def upgrade(cls, document: dict[str, Any], schema: int) -> dict[str, Any]:
        """Schema 1 held what of the plan could be chosen then, and the busiest moment in place of states."""
        if schema == 1:
            backends = list(dict.fromkeys(row["cell"]["backend"] for row in document["measurements"]))
            batches = list(dict.fromkeys(row["cell"]["batch"] for row in document["measurements"]))
            document = dict(document)
            document["states"] = [{"other_load": document.pop("other_load", None)}]
            document["plan"] = {
                "backends": backends, "batches": batches, "threads": [document.pop("threads")],
                "device": document.pop("device"), "rounds": document.pop("rounds"), "twin": False,
            }  # fmt: skip
        return document

    @property
    def device(self) -> str:
        return self.plan.device

    @property
    def disturbances(self) -> list[str]:
        """Why times may be too long, and not all to the same degree; empty on a quiet machine."""
        return machine.causes(self.states)

    def subject(self, measurement: Measurement) -> Subject:
        return next(subject for subject in self.subjects if subject.name == measurement.cell.artifact)

    def models(self) -> list[str]:
        """The groups of comparable subjects, in the order given."""
        return list(dict.fromkeys(subject.model for subject in self.subjects))

    def of(self, model: str) -> Iterator[Measurement]:
        """The measurements of one group, without the twin."""
        return (
            row for row in self.measurements if not row.cell.twin and self.subject(row).model == model
        )  # fmt: skip

    def baseline(self, row: Measurement) -> Measurement | None:
        """Eager fp32 under the same conditions; without it ONNX Runtime on fp32 as it was exported; else None."""
        rivals = [
            other for other in self.of(self.subject(row).model)
            if other.valid and (other.cell.conditions, other.heat) == (row.cell.conditions, row.heat)
        ]  # fmt: skip
        return find_baseline(rivals, lambda other: (other.cell, self.subject(other)))

    def speedup(self, row: Measurement) -> Estimate | None:
        """How many times faster than its baseline, paired by round; None without one, or without a computation."""
        if row.check is None:
            return None
        base = self.baseline(row)
        return stats.speedup(base.rounds_s, row.rounds_s, row.processes) if base else None

    def floor(self, row: Measurement) -> float:
        """By what share equal rows were found to differ in this run, under the row's conditions; at least 1%.

        From the A/A pair: the baseline and its twin are one artifact in one engine, in two processes.
        """
        model = self.subject(row).model
        for twin in self.measurements:
            if twin.cell.twin and twin.valid and self.subject(twin).model == model:
                base = self.baseline(twin)
                if base and twin.cell.conditions == row.cell.conditions:
                    ratio = stats.speedup(base.rounds_s, twin.rounds_s, twin.processes).value
                    return max(LEAST_FLOOR, abs(ratio - 1), abs(1 / ratio - 1))
        return LEAST_FLOOR

    def verified(self, measurement: Measurement) -> bool:
        """Whether a record vouches for the file and this very session was found to keep its promise."""
        check = measurement.check
        return (
            measurement.valid and check is not None and not check.reason
            and check.cosine is not None and self.subject(measurement).passed
        )  # fmt: skip

    def conditions(self, model: str) -> list[Conditions]:
        """The conditions a model was measured under, in order."""
        return list(dict.fromkeys(row.cell.conditions for row in self.of(model)))

    def fastest(self, model: str, conditions: Conditions, max_drop: float) -> list[Measurement]:
        """The verified rows that ran as their records say within `max_drop` points of top-1, fastest first."""
        rows = [row for row in self.of(model)
                if row.cell.conditions == conditions and self.verified(row) and not row.shortfall]  # fmt: skip
        kept = [row for row in rows if (drop := self.drop(row)) is not None and drop <= max_drop]
        return sorted(kept, key=lambda row: row.median.value)

    def drop(self, row: Measurement) -> float | None:
        """Percentage points of top-1 lost; None where it is not known."""
        subject = self.subject(row)
        if subject.drop is None:  # without labels only what computes the same is known to be as accurate
            return 0.0 if subject.is_exact_fp32 else None
        return subject.drop


def engine_name(backend: str, options: Mapping[str, str]) -> str:
    """The backend, with whatever options made it differ from its defaults."""
    return " ".join([backend, *(f"{key}={value}" for key, value in sorted(options.items()))])


def find_baseline(rivals: Iterable[T], of: Callable[[T], tuple[Cell, Subject]]) -> T | None:
    """Of things that are a cell of a subject each, the one that ratios are to."""
    rivals = list(rivals)
    for backend in ("eager", "onnxruntime"):
        for rival in rivals:
            cell, subject = of(rival)
            plain = subject.variant is not None and not subject.variant.rewrites and subject.is_exact_fp32
            if cell.backend == backend and not cell.options and plain:
                return rival
    return None

"""Cell, Measurement and Report: what was measured. Raw samples are kept; statistics are derived on reading."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from export.variant import Variant
from runtime import stats
from runtime.check import Check
from trainers.manifest import Environment, Record, Struct
from trainers.quiet import NOISY
from trainers.stats import Estimate


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


class Cell(Struct, frozen=True, kw_only=True):
    """One row: an artifact in an engine at a batch size."""

    artifact: str  # a Subject's name
    backend: str
    device: str
    batch: int
    threads: int
    options: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def engine(self) -> str:
        """The backend, with whatever options made it differ from its defaults."""
        return " ".join([self.backend, *(f"{key}={value}" for key, value in sorted(self.options.items()))])


class Measurement(Struct, frozen=True, kw_only=True):
    """What one cell took, in seconds; `rounds_s` holds every sample of every round. `error` says why there is none."""

    cell: Cell
    rounds_s: tuple[tuple[float, ...], ...] = ()
    build_s: float | None = None  # compiling
    load_s: float | None = None  # all else before the first inference
    first_s: float | None = None  # the first inference, copies included
    peak_bytes: int | None = None  # resident memory of the worker process
    attested: dict[str, str] = msgspec.field(default_factory=dict)  # what the engine said about itself
    check: Check | None = None
    error: str | None = None

    @property
    def valid(self) -> bool:
        return self.error is None and bool(self.rounds_s)

    @property
    def median(self) -> Estimate:
        """Seconds an inference of the whole batch."""
        return stats.median(self.rounds_s)

    def percentile(self, q: float) -> float | None:
        """Seconds; None where there are too few samples to say."""
        return stats.percentile(stats.pooled(self.rounds_s), q)


class Report(Record, frozen=True, kw_only=True):
    """One run of `bench`."""

    environment: Environment
    command: str
    device: str
    threads: int
    rounds: int
    seconds: float  # spent in all
    subjects: tuple[Subject, ...]
    measurements: tuple[Measurement, ...]
    unavailable: dict[str, str]  # backend: why it could not run
    stale: tuple[str, ...] = ()  # artifacts of an older checkpoint, left out
    other_load: float | None = None  # cores that other programs used between rounds, at most

    @property
    def is_disturbed(self) -> bool:
        """Whether other programs were busy meanwhile: times are then too long, and not all to the same degree."""
        return (self.other_load or 0.0) >= NOISY

    def subject(self, measurement: Measurement) -> Subject:
        return next(subject for subject in self.subjects if subject.name == measurement.cell.artifact)

    def models(self) -> list[str]:
        """The groups of comparable subjects, in the order given."""
        return list(dict.fromkeys(subject.model for subject in self.subjects))

    def of(self, model: str) -> Iterator[Measurement]:
        """The measurements of one group."""
        return (measurement for measurement in self.measurements if self.subject(measurement).model == model)

    def baseline(self, model: str, batch: int) -> Measurement | None:
        """Eager fp32 at this batch; without it ONNX Runtime on fp32 as an exporter or the user wrote it; else None."""
        for backend in ("eager", "onnxruntime"):
            for row in self.of(model):
                variant = self.subject(row).variant
                if (
                    row.valid and row.cell.batch == batch and row.cell.backend == backend and not row.cell.options
                    and variant and not variant.rewrites and self.subject(row).is_exact_fp32
                ):  # fmt: skip
                    return row
        return None

    def speedup(self, measurement: Measurement) -> Estimate | None:
        """How many times faster than its baseline, paired by round; None without one, or without a computation."""
        if measurement.check is None:
            return None
        base = self.baseline(self.subject(measurement).model, measurement.cell.batch)
        return stats.speedup(base.rounds_s, measurement.rounds_s) if base else None

    def verified(self, measurement: Measurement) -> bool:
        """Whether a record vouches for the file and this very session was found to keep its promise."""
        check = measurement.check
        return (
            measurement.valid and check is not None and not check.reason
            and check.cosine is not None and self.subject(measurement).passed
        )  # fmt: skip

    def fastest(self, model: str, batch: int, max_drop: float) -> list[Measurement]:
        """The verified rows within `max_drop` percentage points of top-1, fastest first."""
        rows = [row for row in self.of(model) if row.cell.batch == batch and self.verified(row)]
        return sorted((row for row in rows if self._drop(row) <= max_drop), key=lambda row: row.median.value)

    def _drop(self, row: Measurement) -> float:
        subject = self.subject(row)
        if subject.drop is None:  # without labels only what computes the same is known to be as accurate
            return 0.0 if subject.is_exact_fp32 else float("inf")
        return subject.drop

"""Candidate: one form in one engine with its settings, and what the search has found out about it."""

from __future__ import annotations

from runtime.results import Measurement, Report, engine_name
from runtime.tuning.accuracy import Accuracy
from trainers.manifest import Record, Struct
from trainers.stats import Estimate


class Candidate(Struct, frozen=True, kw_only=True):
    """A row of the search. Times are of the last race it took part in.

    `faster` is the paired ratio to the fp32 file in ONNX Runtime, which takes part in every race but the last: it makes
    one race's times comparable with another's.
    """

    artifact: str  # the name
    backend: str
    options: dict[str, str]
    bytes: int
    stage: str = "waiting"  # the last it took part in: screened, raced, judged or confirmed
    seconds: float | None = None  # an inference of the whole batch
    faster: Estimate | None = None
    accuracy: Accuracy | None = None
    out: str | None = None  # why it is out of the race

    @property
    def engine(self) -> str:
        return engine_name(self.backend, self.options)

    @property
    def cost(self) -> float:
        """What the search ranks by: time, as a share of the fp32 file's in ONNX Runtime."""
        return 1 / self.faster.value if self.faster is not None else float("inf")

    @property
    def name(self) -> str:
        return f"{self.artifact} in {self.engine}"


class Trace(Record, frozen=True, kw_only=True):
    """All that a search has tried, in order; an interrupted one goes on from it."""

    key: str  # of the question and the checkpoint: another question is another search
    seconds: float  # spent so far
    candidates: tuple[Candidate, ...] = ()
    failures: dict[str, str] = {}  # noqa: RUF012 (msgspec copies it): forms that could not be made
    complete: bool = False


def row_of(report: Report, one: Candidate) -> Measurement | None:
    """The candidate's row in a report; None where it took no part."""
    for row in report.measurements:
        cell = row.cell
        if not cell.twin and (cell.artifact, cell.backend, cell.options) == (one.artifact, one.backend, one.options):
            return row
    return None

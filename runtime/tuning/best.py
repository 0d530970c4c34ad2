"""Best: what a search recommends, as a record beside the model's artifacts that `runtime.best` reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from export.artifact import BEST
from runtime import stats
from runtime.results import Measurement, Report
from runtime.tuning.accuracy import Accuracy
from runtime.tuning.candidate import Candidate, row_of
from runtime.tuning.question import Question
from trainers.manifest import Environment, File, Record, invocation
from trainers.stats import Estimate

if TYPE_CHECKING:
    from runtime.tuning.search import Search

EAGER = "eager fp32"  # what most are compared with


class Best(Record, frozen=True, kw_only=True):
    """The recommended form, the engine and settings that it is recommended in, and what that was judged by."""

    SCHEMA: ClassVar[int] = 1

    file: File  # the artifact, beside this record
    bytes: int  # with the weights, where they lie in a second file
    backend: str
    options: dict[str, str]
    question: Question
    latency_s: Estimate  # of the whole batch, in the question's regime
    faster: Estimate | None  # than the baseline, paired by round
    baseline: str
    accuracy: Accuracy
    ties: tuple[str, ...]  # confirmed candidates that the last race did not tell from this one
    report: str  # the last race, under the artifacts folder
    disturbed: tuple[str, ...] = ()  # what else kept the machine busy meanwhile
    command: str
    environment: Environment

    @property
    def artifact(self) -> str:
        return Path(self.file.path).stem


def path(folder: Path) -> Path:
    """Where a model's recommendation lies."""
    return folder / BEST


def record(search: Search, report: Report, winner: tuple[Candidate, Measurement], saved: Path) -> Best:
    """The recommendation, from the last race and what was judged before."""
    one, row = winner
    assert one.accuracy is not None, "only what was judged is chosen"
    base = report.baseline(row)
    name = EAGER if base is None or base.cell.backend == "eager" else "ONNX Runtime fp32"
    rivals = [
        (other, found) for other in search.confirmed if (found := row_of(report, other)) is not None and found.valid
    ]
    path = search.target(one).found.path
    return Best(
        file=File.of(path), bytes=one.bytes, backend=one.backend, options=one.options, question=search.question,
        latency_s=row.median, faster=report.speedup(row) if base is not row else None, baseline=name,
        accuracy=one.accuracy, ties=ties(report, row, rivals), report=f"{saved.parent.name}/{saved.name}",
        disturbed=tuple(report.disturbances),
        command=invocation(), environment=report.environment,
    )  # fmt: skip


def choose(question: Question, report: Report, finalists: Sequence[Candidate]) -> tuple[Candidate, Measurement] | None:
    """The winner of the last race and its row; None where none of them keeps what was asked.

    The fastest; but a model with another function in its activation's place has to be measurably faster than the
    fastest that computes the user's own.
    """
    rows = [(one, row) for one in finalists if (row := row_of(report, one)) is not None and report.verified(row)
            and not row.shortfall]  # fmt: skip
    limit = question.max_latency_s
    fit = [(one, row) for one, row in rows if limit is None or row.median.value <= limit]
    if question.metric == "size":
        return min(fit, key=lambda pair: (pair[0].bytes, pair[1].median.value), default=None)
    ranked = sorted(fit, key=lambda pair: pair[1].median.value)
    own = next(((one, row) for one, row in ranked if report.subject(row).is_own_function), None)
    if own is not None and _ties(report, ranked[0][1], own[1]):
        return own
    return ranked[0] if ranked else None


def ties(report: Report, winner: Measurement, others: Sequence[tuple[Candidate, Measurement]]) -> tuple[str, ...]:
    """Which of the others are not measurably slower: the paired ratio's interval holds 1, or the floor hides it."""
    return tuple(one.name for one, row in others if row is not winner and _ties(report, winner, row))


def _ties(report: Report, winner: Measurement, other: Measurement) -> bool:
    ratio = stats.speedup(other.rounds_s, winner.rounds_s, winner.processes)
    return ratio.low <= 1 or ratio.value <= 1 + report.floor(winner)


def pareto(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those judged that no other beats in time, accuracy and size at once, the fastest first."""
    judged = [one for one in candidates if one.accuracy is not None and one.seconds is not None]

    def costs(one: Candidate) -> tuple[float, float, float]:
        assert one.accuracy is not None, "only what was judged is compared"
        return one.cost, one.accuracy.drop, one.bytes

    def beaten(one: Candidate) -> bool:
        mine = costs(one)
        return any(costs(other) != mine and all(a <= b for a, b in zip(costs(other), mine, strict=True))
                   for other in judged)  # fmt: skip

    return sorted((one for one in judged if not beaten(one)), key=costs)

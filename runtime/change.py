"""Change: one row of two reports, before and after, and what is to be made of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from runtime import stats
from runtime.results import Cell, Measurement, Report, Subject
from trainers.manifest import Struct
from trainers.stats import Estimate

Word = Literal["REGRESSION", "IMPROVEMENT", "INCONCLUSIVE", "SAME", "ADDED", "REMOVED"]
FIRST: tuple[Word, ...] = ("REGRESSION", "IMPROVEMENT", "INCONCLUSIVE")  # the word of a row is the first found; or SAME
ROUNDS = 5  # of fewer the interval is too narrow to be trusted: tests/test_compare.py measures it


class Limits(Struct, frozen=True, kw_only=True):
    """What may get worse: `over`, a share of time or size; `drop`, percentage points of top-1."""

    over: float = 0.03
    drop: float = 0.5


class Change(Struct, frozen=True, kw_only=True):
    """A row, and the reasons for its word. Times are medians in seconds; None where a side has no such figure."""

    model: str
    cell: Cell
    word: Word
    why: tuple[str, ...] = ()
    old_s: float | None = None
    new_s: float | None = None
    ratio: Estimate | None = None  # new time / old time
    drop: float | None = None  # percentage points of top-1 lost since: new drop - old drop
    drop_interval: tuple[float, float] | None = None
    size: float | None = None  # new bytes / old bytes


@dataclass(frozen=True)
class Side:
    """A row and the report it stands in."""

    report: Report
    row: Measurement

    @property
    def subject(self) -> Subject:
        return self.report.subject(self.row)

    @property
    def median_s(self) -> float | None:
        return self.row.median.value if self.row.valid else None


def judge(old: Side, new: Side, limits: Limits) -> Change:
    """What became of a row that both reports have."""
    was, now = old.row, new.row
    ratio = stats.change(was.rounds_s, now.rounds_s, was.processes, now.processes) if was.valid and now.valid else None
    drop, interval = _drop(old.subject, new.subject)
    size = new.subject.bytes / old.subject.bytes
    findings = [*_outcome(old, new), *_accuracy(drop, interval, limits), *_size(size, limits)]
    if ratio is not None:
        findings.insert(0, _latency(ratio, min(len(old.row.rounds_s), len(new.row.rounds_s)), limits))
    words = {word for word, _ in findings}
    return Change(
        model=new.subject.model, cell=new.row.cell, word=next((word for word in FIRST if word in words), "SAME"),
        why=tuple(text for _, text in findings if text), old_s=old.median_s, new_s=new.median_s, ratio=ratio,
        drop=drop, drop_interval=interval, size=size,
    )  # fmt: skip


def added(new: Side) -> Change:
    """A row that only the new report has."""
    return Change(model=new.subject.model, cell=new.row.cell, word="ADDED", why=_error(new), new_s=new.median_s)


def removed(old: Side, new: Report) -> Change:
    """A row that only the old report has; why, where the new one says so."""
    missing = new.unavailable.get(old.row.cell.backend)
    why = (f"{old.row.cell.backend}: {missing}",) if missing else _error(old)
    return Change(model=old.subject.model, cell=old.row.cell, word="REMOVED", why=why, old_s=old.median_s)


def percent(share: float) -> str:
    """A share of one as text: 0.0312 is 3.1%."""
    return f"{100 * share:.1f}%"


Finding = tuple[Word, str]


def _outcome(old: Side, new: Side) -> Iterator[Finding]:
    """Rows that have a number, or an answer to be trusted, on one side only."""
    if old.row.valid and not new.row.valid:
        yield "REGRESSION", f"fails now: {new.row.error}"
    elif new.row.valid and not old.row.valid:
        yield "IMPROVEMENT", f"failed before: {old.row.error}"
    elif not new.row.valid:
        yield "SAME", f"fails in both: {new.row.error}"
    elif old.report.verified(old.row) and not new.report.verified(new.row):
        yield "REGRESSION", "its outputs were verified, and are not now"
    elif new.row.shortfall and old.row.ran is not None and not old.row.shortfall:
        yield "REGRESSION", f"runs otherwise than its record says: {new.row.shortfall}"


def _latency(ratio: Estimate, rounds: int, limits: Limits) -> Finding:
    """Slower or faster by more than the limit and surely; the same where that is sure; else it cannot be told."""
    most, least = 1 + limits.over, 1 / (1 + limits.over)
    if rounds < ROUNDS:
        return "INCONCLUSIVE", f"{rounds} rounds are too few; measure at least {ROUNDS}"
    if ratio.low > 1 and ratio.value > most:
        return "REGRESSION", f"takes {percent(ratio.value - 1)} longer"
    if ratio.high < 1 and ratio.value < least:
        return "IMPROVEMENT", f"takes {percent(1 - ratio.value)} less time"
    if least <= ratio.low and ratio.high <= most:
        return "SAME", ""
    if ratio.is_vague:
        return "INCONCLUSIVE", "too noisy to tell"
    worst = f"{percent(ratio.high - 1)} longer" if ratio.high > most else f"{percent(1 - ratio.low)} less time"
    return "INCONCLUSIVE", f"may take {worst}: measure longer"


def _accuracy(drop: float | None, interval: tuple[float, float] | None, limits: Limits) -> Iterator[Finding]:
    if drop is None or abs(drop) <= limits.drop:
        return
    known = f" (95% interval {interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
    word: Word = "REGRESSION" if drop > 0 else "IMPROVEMENT"
    yield word, f"loses {drop:.2f} points more{known}" if drop > 0 else f"loses {-drop:.2f} points less{known}"


def _size(size: float, limits: Limits) -> Iterator[Finding]:
    if size > 1 + limits.over:
        yield "REGRESSION", f"its file is {percent(size - 1)} larger"
    elif size < 1 / (1 + limits.over):
        yield "IMPROVEMENT", f"its file is {percent(1 - size)} smaller"


def _drop(old: Subject, new: Subject) -> tuple[float | None, tuple[float, float] | None]:
    """By how many points the accuracy drop grew, and an interval where both sides have one.

    The two errors are added as independent ones (Zou and Donner, Statistics in Medicine 27, 2008): too wide where the
    same images judged both files, never too narrow by that.
    """
    if old.drop is None or new.drop is None:
        return None, None
    grown = new.drop - old.drop
    if old.drop_interval is None or new.drop_interval is None:
        return grown, None
    below = math.hypot(new.drop - new.drop_interval[0], old.drop_interval[1] - old.drop)
    above = math.hypot(new.drop_interval[1] - new.drop, old.drop - old.drop_interval[0])
    return grown, (grown - below, grown + above)


def _error(side: Side) -> tuple[str, ...]:
    return (f"fails: {side.row.error}",) if not side.row.valid else ()

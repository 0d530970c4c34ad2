"""What the measuring commands leave: raw samples in records, statistics derived on reading."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from trainers import stats
from trainers.dataset import DataInfo
from trainers.manifest import Environment, Record, Struct
from trainers.measure.rung import Switches
from trainers.spec import Option
from trainers.stats import Estimate

SLOWER = 0.97  # a rung whose median ratio is below this, or whose whole interval is below 1, is not built upon
SWEET = 0.97  # of the best throughput, from which on a larger batch is not worth its memory


class Point(Struct, frozen=True, kw_only=True):
    """A point of a training curve; loss and accuracy (percent) are of the training images since the point before."""

    step: int
    seconds: float
    loss: float
    accuracy: float
    images_per_second: float
    memory_bytes: int


class Learned(Struct, frozen=True, kw_only=True):
    """What the first weights became after so many images: loss and top-1 (percent) on part of the test split."""

    images: int
    test_images: int
    loss: float
    top1: float
    curve: tuple[Point, ...]


class Turns(Struct, frozen=True, kw_only=True):
    """One contender's steps, in seconds each, round by round."""

    name: str
    batch_size: int
    rounds_s: tuple[tuple[float, ...], ...]

    @property
    def paces(self) -> list[float]:
        """Images per second of each round."""
        return [self.batch_size * len(turn) / sum(turn) for turn in self.rounds_s]


class Result(Struct, frozen=True, kw_only=True):
    """One row: a way to train and what it took. `error` says why there is no time, or why it does not count."""

    name: str
    title: str
    device: str
    switches: Switches
    turns: Turns | None = None
    beside: tuple[Turns, ...] = ()  # what took turns with it in the same rounds
    before: str | None = None  # which of these it added a technique to
    first_step_s: float | None = None  # compiling included
    peak_bytes: int | None = None
    learned: Learned | None = None
    error: str | None = None

    @property
    def valid(self) -> bool:
        return self.error is None and self.turns is not None

    @property
    def pace(self) -> Estimate | None:
        """Images per second."""
        return stats.median(self.turns.paces) if self.turns else None

    @property
    def step_s(self) -> float | None:
        """Seconds a step, waiting for its images included."""
        return self.switches.batch_size / self.pace.value if self.pace else None

    def ratio(self, name: str) -> Estimate | None:
        """How many times as many images a second as `name` in the same rounds; None where the two never met."""
        other = next((turns for turns in self.beside if turns.name == name), None)
        return stats.ratio(self.turns.paces, other.paces) if self.turns and other else None

    @property
    def ratio_before(self) -> Estimate | None:
        """To the rung that it added a technique to."""
        return self.ratio(self.before) if self.before else None

    @property
    def kept(self) -> bool:
        """Whether later rungs are built on this one: it worked and did not make training slower."""
        ratio = self.ratio_before
        return self.valid and (ratio is None or (ratio.value >= SLOWER and ratio.high >= 1))


class Comparison(Record, frozen=True, kw_only=True):
    """What ways to train were compared on, where, and how long it took in all."""

    environment: Environment
    command: str
    model: str
    options: dict[str, Option]
    data: DataInfo
    rounds: int
    seconds: float
    other_load: float | None = None  # cores that other programs used when it began


class Ladder(Comparison, frozen=True, kw_only=True):
    """One climb: every rung was timed in rounds with the first one and with the best one before it."""

    device: str
    results: tuple[Result, ...]

    @property
    def first(self) -> Result | None:
        """The rung that all ratios are to: the first that worked."""
        return next((result for result in self.results if result.valid), None)

    def ratio(self, result: Result) -> Estimate | None:
        """To the first rung."""
        if self.first is None or not result.valid:
            return None
        return Estimate(1.0, 1.0, 1.0) if result is self.first else result.ratio(self.first.name)

    @property
    def best(self) -> Result | None:
        """The last rung that was built upon: every technique but those that made training slower."""
        return next((result for result in reversed(self.results) if result.kept), None)

    @property
    def best_ratio(self) -> Estimate | None:
        """How many times as fast as the first rung the best one is."""
        return self.ratio(self.best) if self.best else None

    def unhelpful(self) -> list[Result]:
        """The rungs that worked and did not make training faster beyond doubt."""
        measured = [result for result in self.results if result.valid]
        return [result for result in measured if (r := result.ratio_before) is not None and r.low <= 1]


class Sweep(Comparison, frozen=True, kw_only=True):
    """Training at several batch sizes, timed in common rounds."""

    device: str
    results: tuple[Result, ...]

    @property
    def sweet_spot(self) -> Result | None:
        """The smallest batch within 3% of the best throughput."""
        return sweet_spot(self.results)


def sweet_spot(results: Sequence[Result]) -> Result | None:
    """The smallest batch within 3% of the best throughput among these; None when none could be measured."""
    paced = [(result, result.pace.value) for result in results if result.valid and result.pace]
    best = max((pace for _, pace in paced), default=0.0)
    good = [result for result, pace in paced if pace >= SWEET * best]
    return min(good, key=lambda result: result.switches.batch_size, default=None)


class Experiments(Comparison, frozen=True, kw_only=True):
    """The named set of ways to train; rows of one group took turns in common rounds."""

    groups: dict[str, tuple[Result, ...]] = msgspec.field(default_factory=dict)

    def epoch_s(self, result: Result) -> float | None:
        """Seconds for one pass over the training split at the measured pace."""
        return self.data.splits["train"].count / result.pace.value if result.pace else None

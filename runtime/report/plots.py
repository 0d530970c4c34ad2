"""Points and ticks of a page's plots. page.html draws them.

Across they are in percent of the plot's width and down in pixels: on a phone a plot is narrow, and its letters are not
small.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime import stats
from runtime.report.table import milliseconds
from runtime.results import Measurement, Report
from runtime.roofline import Roofline
from trainers.stats import Estimate

WIDTH, HEIGHT = 100.0, 320.0
SMALLEST, LARGEST = 5.0, 18.0  # radius of the smallest and the largest file
ROW = 38  # height of one row of the distributions: its name, and its samples below
COLOURS = 6  # of lines; lines beyond are grey
NEAR = 16  # pixels between two lines of text
SHOWN = 240  # samples of a row that are drawn: order statistics, evenly spaced, the extremes among them


@dataclass(frozen=True)
class Axis:
    """Values to places in a plot; a `log` axis that is long enough has ticks at 1, 2 and 5 times powers of ten."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    marks: Sequence[float] = ()  # in place of such ticks

    def __call__(self, value: float) -> float:
        low, high = self._scaled(self.low), self._scaled(self.high)
        share = (self._scaled(value) - low) / ((high - low) or 1.0)
        return round(self.start + share * (self.end - self.start), 2)

    def _scaled(self, value: float) -> float:
        return math.log10(max(value, 1e-12)) if self.log else value

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Where they are, and what they say."""
        decades = self._decades() if self.log else []
        values = self.marks or (decades if len(decades) > 2 else self._steps())
        return [(self(value), f"{value:g}") for value in values]

    def _decades(self) -> list[float]:
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        return [value for power in powers for factor in (1, 2, 5)
                if self.low <= (value := round(factor * 10.0**power, 12)) <= self.high]  # fmt: skip

    def _steps(self) -> list[float]:
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
        first = math.ceil(self.low / step)
        return [round(number * step, 12) for number in range(first, math.floor(self.high / step) + 1)]


Stroke = tuple[float, float, float, float]  # from a place to the next: x, y, x, y


@dataclass(frozen=True)
class Point:
    """A row in the plane of time and accuracy; `size` is the radius, whose square goes with the file's bytes."""

    anchor: str
    word: str  # its verdict
    text: str  # what is said of it where the pointer or the keyboard rests
    label: str  # what is written beside it: of the recommended row what it is
    x: float
    y: float
    size: float
    across: tuple[float, float]  # the 95% interval of the time
    along: tuple[float, float] | None  # of the accuracy


@dataclass(frozen=True)
class Pareto:
    """Time against accuracy; `front` joins the rows that none beats in both."""

    x: Axis
    y: Axis
    points: list[Point]
    front: list[Stroke]


def pareto(report: Report, named: Sequence[tuple[str, str, Measurement]], best: Measurement | None) -> Pareto | None:
    """The rows (anchor, verdict, measurement) whose accuracy is known; None where there are fewer than two.

    The `best` is labelled.
    """
    known = [(anchor, word, row, drop) for anchor, word, row in named
             if row.check is not None and (drop := report.drop(row)) is not None]  # fmt: skip
    if len(known) < 2:
        return None
    medians = {anchor: _milliseconds(row.median) for anchor, _, row, _ in known}
    spans = {anchor: report.subject(row).drop_interval for anchor, _, row, _ in known}
    losses = [loss for anchor, _, _, drop in known for loss in (drop, *(spans[anchor] or ()))]
    low, high = min(-0.5, *losses), max(0.5, *losses)
    x = _log_axis([value for one in medians.values() for value in (one.low, one.high)], 0, WIDTH)
    y = Axis(low - 0.1 * (high - low), high + 0.1 * (high - low), 0, HEIGHT)  # what loses less is above
    largest = max(report.subject(row).bytes for _, _, row, _ in known)
    points = []
    for anchor, word, row, drop in known:
        subject, span, one = report.subject(row), spans[anchor], medians[anchor]
        points.append(Point(
            anchor=anchor, word=word, x=x(one.value), y=y(drop),
            size=round(max(SMALLEST, LARGEST * math.sqrt(subject.bytes / largest)), 1),
            across=(x(one.low), x(one.high)), along=(y(span[0]), y(span[1])) if span else None,
            label=f"{variant(report, row)} in {row.cell.engine}" if row is best else "",
            text=f"{subject.name} in {row.cell.engine}: {milliseconds(row.median.value)} ms "
                 f"[{one.low:.3g}, {one.high:.3g}], top-1 drop {drop:+.2f}, {subject.bytes / 1e6:.1f} MB, {word}",
        ))  # fmt: skip
    front = [(x(a), y(b)) for a, b in _front([(medians[anchor].value, drop) for anchor, _, _, drop in known])]
    return Pareto(x, y, sorted(points, key=lambda point: (bool(point.label), -point.size)), _strokes(front))


def variant(report: Report, row: Measurement) -> str:
    """The artifact's name without its model's."""
    subject = report.subject(row)
    return subject.name.removeprefix(f"{subject.model}-")


def _strokes(places: Sequence[tuple[float, float]]) -> list[Stroke]:
    """What joins them."""
    return [(*before, *after) for before, after in itertools.pairwise(places)]


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that no other is at least as good as in both, by time."""
    kept: list[tuple[float, float]] = []
    for time, drop in sorted(points):
        if not kept or drop < kept[-1][1]:
            kept.append((time, drop))
    return kept


@dataclass(frozen=True)
class Strip:
    """One row's samples on the common time axis: all of them (or SHOWN), their quartiles and median."""

    anchor: str
    word: str
    name: str
    text: str  # its numbers
    y: float
    samples: list[float]
    quartiles: tuple[float, float, float]


@dataclass(frozen=True)
class Distributions:
    x: Axis
    strips: list[Strip]
    height: int


def distributions(report: Report, named: Sequence[tuple[str, str, Measurement]]) -> Distributions:
    """Every row's raw samples, one under the other."""
    pooled = {anchor: 1e3 * np.sort(stats.pooled(row.rounds_s)) for anchor, _, row in named}
    # The slowest hundredth of a row may be ten times its median, and would press all others against the edge.
    ends = [end for values in pooled.values() for end in (values[0], np.quantile(values, 0.99))]
    x = _log_axis(ends, 0, WIDTH)
    strips = []
    for number, (anchor, word, row) in enumerate(named):
        values = np.clip(pooled[anchor], x.low, x.high)
        drawn = values[np.unique(np.linspace(0, len(values) - 1, min(SHOWN, len(values))).astype(int))]
        first, middle, last = (float(value) for value in np.quantile(values, (0.25, 0.5, 0.75)))
        name = f"{variant(report, row)} in {row.cell.engine}"
        text = f"{name}: median {middle:.3g} ms, half of {row.samples:,} samples from {first:.3g} to {last:.3g} ms"
        strips.append(Strip(anchor, word, name, text, ROW * (number + 0.7), [x(float(value)) for value in drawn],
                            (x(first), x(middle), x(last))))  # fmt: skip
    return Distributions(x, strips, ROW * len(pooled))


@dataclass(frozen=True)
class Line:
    name: str
    strokes: list[Stroke]
    dots: list[tuple[float, float, str]]
    color: int | None  # None: grey


@dataclass(frozen=True)
class Sweep:
    x: Axis
    y: Axis
    lines: list[Line]


def sweep(report: Report, rows: Sequence[Measurement]) -> Sweep | None:
    """Time an image by batch size, a line an artifact and engine; None where there is one batch size.

    The fastest have colours and come last, so that they are drawn over the others.
    """
    batches = sorted({row.cell.batch for row in rows})
    if len(batches) < 2:
        return None
    times = [1e3 * row.median.value / row.cell.batch for row in rows]
    x = Axis(batches[0] / 1.1, batches[-1] * 1.1, 0, WIDTH, log=True, marks=batches)
    y = _log_axis(times, HEIGHT, 0)
    named: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    for row, time in sorted(zip(rows, times, strict=True), key=lambda one: one[0].cell.batch):
        named[f"{variant(report, row)} in {row.cell.engine}"].append((row.cell.batch, time))
    lines = []
    fastest = sorted(named, key=lambda name: min(time for _, time in named[name]))
    for rank, name in enumerate(fastest):
        dots = [(x(batch), y(time), f"{name}, batch {batch}: {time:.3g} ms an image") for batch, time in named[name]]
        lines.append(Line(name, _strokes([(a, b) for a, b, _ in dots]), dots, rank if rank < COLOURS else None))
    lines.reverse()
    return Sweep(x, y, lines)


@dataclass(frozen=True)
class Work:
    """A layer as the roofline sees it."""

    name: str
    precision: str
    seconds: float
    flops: float
    bytes: float


@dataclass(frozen=True)
class Roof:
    """Layers below what this machine can do at most: `levels` of memory slant, and `peaks` of precisions are level."""

    x: Axis
    y: Axis
    levels: list[Stroke]
    names: list[tuple[float, float, str]]  # of the levels, where each begins
    peaks: list[tuple[Stroke, str, int]]
    dots: list[tuple[float, float, float, str, int]]  # place, radius, what is said of it, colour
    threads: int


def roof(works: Sequence[Work], found: Roofline, threads: int) -> Roof | None:
    """Each layer's operations a second over its operations a byte; None where none has both."""
    known = [one for one in works if one.flops and one.bytes and one.seconds]
    if not known:
        return None
    count = found.threads(threads)
    memory = found.levels(count)
    used = sorted({one.precision for one in known})
    peaks = {name: peak for name in used if (peak := found.peak(name, count))}
    top = max([peak.rate for peak in peaks.values()] or [one.flops / one.seconds for one in known])
    intensities, rates = [one.flops / one.bytes for one in known], [one.flops / one.seconds for one in known]
    x = Axis(0.6 * min(*intensities, 0.5), 1.7 * max(*intensities, top / min(memory.values())), 0, WIDTH, log=True)
    y = Axis(0.5e-9 * min(rates), 1.6e-9 * max(top, *rates), HEIGHT, 0, log=True)

    def line(rate: float, highest: float) -> Stroke:
        """Where `rate` bytes a second limit, inside the plot."""
        start, end = max(x.low, 1e9 * y.low / rate), highest / rate
        return x(start), y(start * rate / 1e9), x(end), y(end * rate / 1e9)

    longest, best = max(one.seconds for one in known), max(memory.values())
    dots = [(x(one.flops / one.bytes), y(rate / 1e9), round(max(3.0, LARGEST * math.sqrt(one.seconds / longest)), 1),
             f"{one.name}, {one.precision}: {1e3 * one.seconds:.3g} ms, {rate / 1e9:.3g} GFLOP/s, "
             f"{one.flops / one.bytes:.3g} operations a byte", used.index(one.precision) % COLOURS)
            for one, rate in zip(known, rates, strict=True)]  # fmt: skip
    levels = {name: line(rate, top) for name, rate in memory.items()}
    names: list[tuple[float, float, str]] = []
    for name, (left, start, *_) in sorted(levels.items(), key=lambda level: -memory[level[0]]):
        text = f"{name} {memory[name] / 1e9:.0f} GB/s"
        if names and start - names[-1][1] < NEAR:  # they would cover each other
            names[-1] = (*names[-1][:2], f"{names[-1][2]}, {text}")
        else:
            names.append((left, start, text))
    return Roof(
        x, y, list(levels.values()), names,
        [((x(peak.rate / best), y(peak.rate / 1e9), WIDTH, y(peak.rate / 1e9)),
          f"{name}: {peak.rate / 1e9:.0f} GFLOP/s in {peak.engine}", used.index(name) % COLOURS)
         for name, peak in peaks.items()],
        sorted(dots, key=lambda dot: -dot[2]), count,
    )  # fmt: skip


def _milliseconds(seconds: Estimate) -> Estimate:
    return Estimate(1e3 * seconds.value, 1e3 * seconds.low, 1e3 * seconds.high)


def _log_axis(values: Sequence[float], start: float, end: float) -> Axis:
    """A logarithmic axis that holds them all, with some room."""
    return Axis(0.85 * min(values), 1.18 * max(values), start, end, log=True)

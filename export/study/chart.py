"""The study's picture: each activation's error over x with the inputs seen behind it, and what accuracy it costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from export.study.record import Accuracy, Row, Study
from trainers.manifest import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#2f6db3", "#c0713a", "#3f8f4f", "#8c4aa8", "#b8384a", "#4f8f96", "#8a7a2b", "#555555")
SEEN, INK, FAINT = "#dfe3e8", "#222222", "#777777"
DPI = 150
EDGE = 0.001  # of the inputs on either side are beyond what is drawn


def draw(study: Study, path: Path) -> None:
    """Write the PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in study.rows if not row.is_exact]
    figure = Figure(figsize=(12.0, 4.8), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    for axes in (left, right):
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    _errors(left, study, rows)
    _drops(right, study, rows)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")


def _errors(axes: Axes, study: Study, rows: list[Row]) -> None:
    """The activation minus GELU, over the middle of what was seen."""
    points, density = study.seen.points, study.seen.density
    behind = axes.twinx()
    behind.fill_between(points, density, color=SEEN, lw=0, label="inputs seen")
    behind.set_ylim(0, 1.05 * max(density))
    behind.set_yticks([])
    for side in ("top", "right", "left"):
        behind.spines[side].set_visible(False)
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)
    for place, row in enumerate(rows):
        axes.plot(points, row.curve, color=_colour(place), lw=1.6, label=row.name)
    axes.plot([], [], color=SEEN, lw=8, label="inputs seen (density)")
    axes.axhline(0, color=FAINT, lw=0.8)
    axes.set_xlim(*_ends(points, density))
    axes.set_xlabel(f"x, the input of GELU on {study.seen.images} {study.seen.split} images")
    axes.set_ylabel("activation - GELU")
    axes.set_title(f"{study.model}: error over the inputs seen", loc="left")
    axes.grid(color="#eeeeee")
    axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)


def _ends(points: tuple[float, ...], density: tuple[float, ...]) -> tuple[float, float]:
    """The points between which all but the edges of the inputs lie; at least [-4, 4] where that was seen at all."""
    total, sums = 0.0, []
    for value in density:
        total += value
        sums.append(total)
    low = next(x for x, done in zip(points, sums, strict=True) if done >= EDGE * total)
    high = next(x for x, done in zip(points, sums, strict=True) if done >= (1 - EDGE) * total)
    return max(points[0], min(low, -4.0)), min(points[-1], max(high, 4.0))


def _drops(axes: Axes, study: Study, rows: list[Row]) -> None:
    """Points of top-1 lost, with their intervals: swapped, and after the fine-tuning."""
    from matplotlib.lines import Line2D

    for place, row in enumerate(rows):
        _interval(axes, place - 0.12 * (row.after is not None), row.before, _colour(place), filled=True)
        if row.after is not None:
            _interval(axes, place + 0.16, row.after, _colour(place), filled=False)
    axes.axvline(0, color=FAINT, lw=0.8)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=0.22)
    axes.set_xlabel(f"points of top-1 lost, with 95% intervals, on {study.images} {study.split} images")
    axes.set_title(f"loss of accuracy; exact has {study.rows[0].before.top1:.2f}%", loc="left")
    axes.grid(axis="x", color="#eeeeee")
    if study.finetune_steps:
        marks = {"swapped": INK, f"fine-tuned {study.finetune_steps} steps, against exact alike": "white"}
        handles = [
            Line2D([], [], marker="o", ls="", color=INK, markerfacecolor=face, label=label)
            for label, face in marks.items()
        ]
        axes.legend(
            handles=handles, frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2
        )


def _interval(axes: Axes, height: float, found: Accuracy, colour: str, *, filled: bool) -> None:
    low, high = found.interval
    axes.plot([low, high], [height, height], color=colour, lw=1.4)
    axes.plot(found.drop, height, marker="o", ms=6, color=colour, markerfacecolor=colour if filled else "white")
    axes.annotate(f"{found.drop:+.2f}", (high, height), xytext=(5, 0), textcoords="offset points", va="center",
                  fontsize=8, color=INK)  # fmt: skip


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]

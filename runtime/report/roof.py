"""The roofline as a picture: this machine's roofs, and the layers of a profile below them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from export.inspect.charts import DPI, FAINT, GRID, INK
from runtime.layers import Row
from runtime.roofline import Roofline
from trainers.manifest import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"fp32": "#3b6fb6", "bf16": "#d9822b", "int8": "#3f9b5b"}
NAMED = 6  # layers with a label: those that take longest
LARGEST, SMALLEST = 320.0, 8.0  # areas of points in square points: of the layer that takes longest, and the least
NEAR = (0.35, 0.09)  # decades of intensity and of rate within which a second label would hide the first


def draw(rows: Sequence[Row], roof: Roofline, threads: int, title: str, path: Path) -> bool:
    """Write the PNG; False where no row has both FLOPs and bytes, and nothing is drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = [(row.intensity, row.rate, row) for row in rows if row.intensity is not None and row.rate is not None]
    if not points:
        return False
    figure = Figure(figsize=(9.5, 6.2), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    used = sorted({row.kernel.precision for _, _, row in points})
    left, right = min(0.1, *(x / 2 for x, _, _ in points)), max(1e3, *(2 * x for x, _, _ in points))
    count = roof.threads(threads)
    _roofs(axes, roof, count, used, np.geomspace(left, right, 300))
    longest = max(row.kernel.seconds for _, _, row in points)
    for x, y, row in points:
        area = max(SMALLEST, LARGEST * row.kernel.seconds / longest)
        axes.scatter(x, y / 1e9, s=area, alpha=0.6, color=COLOURS.get(row.kernel.precision, FAINT), linewidths=0,
                     zorder=3)  # fmt: skip
    _label(axes, points)
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="GFLOP/s")
    axes.grid(color=GRID, linewidth=0.5, zorder=0)
    axes.set_title(f"{title}\na point's area is its time; roofs as measured with {count} thread{'s' * (count > 1)}",
                   fontsize=9, loc="left", color=INK)  # fmt: skip
    axes.legend(loc="lower right", fontsize=8, frameon=False)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")
    return True


def _roofs(axes: Axes, roof: Roofline, threads: int, used: Sequence[str], span: np.ndarray) -> None:
    """A level roof for each precision used, and a slanting one for each level of memory."""
    fastest = roof.levels(threads)
    peaks = {name: peak for name in used if (peak := roof.peak(name, threads))}
    top = max((peak.rate for peak in peaks.values()), default=max(fastest.values()))
    for name, rate in fastest.items():
        slope = span * rate
        axes.plot(span[slope <= top], slope[slope <= top] / 1e9, color=FAINT, linewidth=0.9)
        axes.annotate(f"{name} {rate / 1e9:.0f} GB/s", (span[0], slope[0] / 1e9), fontsize=7, color=FAINT,
                      xytext=(2, 6), textcoords="offset points")  # fmt: skip
    for name, peak in peaks.items():
        reached = span[span * max(fastest.values()) >= peak.rate]
        axes.plot(reached, np.full(len(reached), peak.rate / 1e9), color=COLOURS.get(name, FAINT),
                  label=f"{name}: {peak.rate / 1e9:.0f} GFLOP/s in {peak.engine}")  # fmt: skip


def _label(axes: Axes, points: Sequence[tuple[float, float, Row]]) -> None:
    """Name the longest layers, but for those that stand where another one is named."""
    taken: list[tuple[float, float]] = []
    for x, y, row in points[:NAMED]:
        place = math.log10(x), math.log10(y)
        if any(abs(place[0] - a) < NEAR[0] and abs(place[1] - b) < NEAR[1] for a, b in taken):
            continue
        taken.append(place)
        axes.annotate(row.name, (x, y / 1e9), fontsize=7, color=INK, xytext=(6, 4), textcoords="offset points")

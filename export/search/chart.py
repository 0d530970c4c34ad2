"""A picture of what int8 does to each layer, as a PNG file."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from export.search.records import Sensitivity
from trainers.manifest import atomic

DAMAGE, SAVED, SLOWER, FAINT = "#b4453a", "#2f6db3", "#c0913a", "#e6e6e6"
DPI = 150
FLOOR = 1e-9  # nats: no damage that 64 images could show; a logarithm has no zero


def draw(record: Sensitivity, path: Path) -> None:
    """One row a layer, in the record's order: its damage on a logarithmic scale, and the time that int8 saves."""
    count = len(record.layers)
    figure = Figure(figsize=(11, 1.5 + 0.21 * count), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    damage, saved = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    places = range(count)
    values = [max(layer.scores.kl, FLOOR) for layer in record.layers]
    start = min(values) / 3
    damage.barh(places, [value - start for value in values], left=start, color=DAMAGE, height=0.7)
    damage.set_xscale("log")
    damage.xaxis.set_major_locator(LogLocator(numticks=8))
    damage.set_xlabel("damage: KL(fp32 || int8), nats, log scale")
    times = [1e6 * layer.saved for layer in record.layers]
    saved.barh(places, times, color=[SAVED if time >= 0 else SLOWER for time in times], height=0.7)
    saved.axvline(0, color="#222222", lw=0.8)
    saved.set_xlabel("µs saved a run" + (" (estimated)" if not record.costs else ""))
    damage.set_yticks(places, [f"{layer.name}  {layer.weight}".strip() for layer in record.layers], fontsize=8)
    damage.set_ylim(count - 0.4, -0.6)
    for axes in (damage, saved):
        axes.set_axisbelow(True)
        axes.grid(axis="x", color=FAINT)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    basis = record.basis
    figure.suptitle(
        f"{record.file}: each layer alone in int8 ({basis.target}), {basis.images} {basis.split} images\n"
        "sorted by damage for the time saved, the worst first",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")

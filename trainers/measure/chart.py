"""Pictures of what was measured, as PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trainers.manifest import atomic
from trainers.measure.results import Ladder, Result, Sweep
from trainers.measure.tables import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KEPT, LEFT_OUT, INK, FAINT = "#2f6db3", "#b9bec5", "#222222", "#777777"
DPI = 150


def ladder(record: Ladder, path: Path) -> None:
    """Images a second by rung: bars with their intervals, each with its ratio to the first."""
    rows = [result for result in record.results if result.pace is not None and result.valid]
    skipped = [result for result in record.results if not result.valid]
    figure, axes = _figure(9.0, 1.6 + 0.36 * (len(rows) + len(skipped)))
    names = [result.name for result in (*rows, *skipped)]
    most = max((result.pace.high for result in rows if result.pace), default=1.0)
    for place, result in enumerate(rows):
        assert result.pace is not None
        error = [[max(0.0, result.pace.value - result.pace.low)], [max(0.0, result.pace.high - result.pace.value)]]
        axes.barh(place, result.pace.value, color=KEPT if result.kept else LEFT_OUT, height=0.68, xerr=error,
                  error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2})  # fmt: skip
        axes.text(result.pace.high + 0.012 * most, place, _label(record, result), va="center", fontsize=8, color=INK)
    for place, result in enumerate(skipped, len(rows)):
        axes.text(0.008 * most, place, _short(result.error or ""), va="center", fontsize=8, color=FAINT, style="italic")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.45 * most)
    axes.set_xlabel("images per second; the line on a bar is the 95% interval")
    axes.set_title(_title(record.model, record.device, record.environment.cpu, record.environment.gpu), loc="left")
    axes.grid(axis="x", color="#e6e6e6")
    _save(figure, path)


def sweep(record: Sweep, path: Path) -> None:
    """Throughput and peak memory by batch size."""
    rows = [(r.switches.batch_size, r.pace, r.peak_bytes or 0) for r in record.results if r.valid and r.pace]
    figure, axes = _figure(8.0, 4.6)
    batches = [batch for batch, _, _ in rows]
    paces = [pace.value for _, pace, _ in rows]
    axes.fill_between(batches, [p.low for _, p, _ in rows], [p.high for _, p, _ in rows], color=KEPT, alpha=0.18, lw=0)
    axes.plot(batches, paces, color=KEPT, marker="o", label="images per second")
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.minorticks_off()
    axes.margins(x=0.1)
    axes.set_ylim(0, 1.25 * max(paces, default=1.0))
    axes.set_xlabel("batch size")
    axes.set_ylabel("images per second", color=KEPT)
    memory = axes.twinx()
    memory.plot(batches, [peak / 1e9 for _, _, peak in rows], color="#c0713a", marker="s", ls="--", label="peak memory")
    memory.set_ylabel("peak memory, GB", color="#c0713a")
    memory.set_ylim(bottom=0)
    memory.spines["top"].set_visible(False)
    if (best := record.sweet_spot) is not None and best.pace is not None:
        axes.annotate(f"sweet spot: {best.switches.batch_size}", (best.switches.batch_size, best.pace.value),
                      xytext=(0, 14), textcoords="offset points", ha="center", fontsize=9, color=INK)  # fmt: skip
    axes.set_title(_title(record.model, record.device, record.environment.cpu, record.environment.gpu), loc="left")
    axes.grid(color="#e6e6e6")
    _save(figure, path)


def _label(record: Ladder, result: Result) -> str:
    ratio, pace = record.ratio(result), result.pace
    times = f"  {ratio.value:.2f}x" if ratio else ""
    mark = "  best" if result is record.best else "" if result.kept else "  slower: left out"
    return f"{number(pace.value if pace else None)}{times}{mark}"


def _title(model: str, device: str, cpu: str, gpu: str | None) -> str:
    return f"Training {model} on {(gpu or device).split(',')[0] if device == 'cuda' else cpu}"


def _short(text: str) -> str:
    return text if len(text) <= 90 else f"{text[:89]}…"


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A light figure that no window system is needed for."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")

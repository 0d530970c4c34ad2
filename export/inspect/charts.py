"""The operator chart as a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from export.inspect.inventory import Inventory, Row
from export.inspect.units import milliseconds, share, si
from trainers.manifest import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT, GRID = "#222222", "#777777", "#e6e6e6"
DPI = 130
OPERATORS, LAYERS = 12, 15  # bars; the rest is summed in one more
NAME = 46  # characters of a label


@dataclass(frozen=True)
class Measure:
    """Something to show of each row; `whole` is what shares are of."""

    title: str
    value: Callable[[Row], float | None]
    text: Callable[[float | None], str]
    whole: float

    def share(self, row: Row) -> str:
        """The row's part of the whole."""
        return share(self.value(row), self.whole)


def measures(inventory: Inventory) -> list[Measure]:
    """What there is to show of a file: its measured time, if any, and its three costs."""

    def nbytes(value: float | None) -> str:
        return si(value, "B")

    shown = [
        Measure("FLOPs", lambda row: row.flops, si, inventory.flops),
        Measure("bytes", lambda row: row.bytes, nbytes, inventory.bytes),
        Measure("parameters", lambda row: row.parameters, si, inventory.parameters),
    ]
    timed = Measure("milliseconds", lambda row: row.seconds, milliseconds, sum(inventory.seconds.values()))
    return [timed, *shown] if inventory.costs else shown


def draw(inventory: Inventory, path: Path) -> None:
    """Write the PNG: above the operators, below the costliest layers, a column a measure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = measures(inventory)
    operators = summed(inventory.by_operator, OPERATORS, "operators")
    layers = summed(inventory.by_layer, LAYERS, "layers")
    size = (4.2 + 3.1 * len(columns), 2.2 + 0.27 * (len(operators) + len(layers)))
    figure = Figure(figsize=size, dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(columns), sharey="row", height_ratios=(len(operators), len(layers)), squeeze=False)
    colours = _colours(inventory.by_operator)
    parts = (("by operator", operators, _operator), ("costliest layers", layers, short))
    for line, (what, rows_shown, named) in zip(axes, parts, strict=True):
        for place, measure in zip(line, columns, strict=True):
            _bars(place, rows_shown, measure, colours)
            place.set_title(f"{measure.title}, {what}", fontsize=10, loc="left", color=INK)
        line[0].set_yticks(range(len(rows_shown)), [named(row) for row in rows_shown], fontsize=8)
        line[0].set_ylim(len(rows_shown) - 0.4, -0.6)
    figure.suptitle(heading(inventory), fontsize=11, x=0.01, ha="left", color=INK)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")


def heading(inventory: Inventory) -> str:
    """What the chart is of, with the totals."""
    more = " and more" if inventory.unknown else ""
    line = (
        f"{inventory.path.name}, batch {inventory.batch}: {si(inventory.flops)}FLOPs{more} (a multiply-add is 2), "
        f"{si(inventory.bytes, 'B')} read and written, {inventory.parameters:,} parameters"
    )
    if not inventory.costs:
        return line
    costs = inventory.costs
    total = milliseconds(sum(inventory.seconds.values()))
    return f"{line}; {total} ms in {costs.engine} on {costs.device}, {costs.threads} thread{'s' * (costs.threads > 1)}"


def summed(rows: Sequence[Row], count: int, noun: str) -> list[Row]:
    """The first `count` rows, and one that sums up the others."""
    if len(rows) <= count + 1:
        return list(rows)
    rest = rows[count:]
    seconds = sum(row.seconds or 0 for row in rest) if rows[0].seconds is not None else None
    return [
        *rows[:count],
        Row(label=f"{len(rest)} other {noun}", operator="", precision="", nodes=sum(row.nodes for row in rest),
            flops=sum(row.flops or 0 for row in rest), bytes=sum(row.bytes or 0 for row in rest),
            parameters=sum(row.parameters for row in rest), seconds=seconds),
    ]  # fmt: skip


def _bars(axes: Axes, rows: Sequence[Row], measure: Measure, colours: dict[str, str]) -> None:
    values = [measure.value(row) for row in rows]
    lengths = [v or 0 if row.operator else 0 for row, v in zip(rows, values, strict=True)]  # a sum of many has no bar:
    most = max(lengths) or 1.0  # it would dwarf the others
    axes.barh(range(len(rows)), lengths, height=0.72, color=[colours.get(row.operator, FAINT) for row in rows])
    for place, (row, length, known) in enumerate(zip(rows, lengths, values, strict=True)):
        label = f"{measure.text(known)}  {measure.share(row)}" if known else measure.text(known)
        axes.text(length + 0.015 * most, place, label, va="center", fontsize=7.5,
                  color=INK if known and row.operator else FAINT)  # fmt: skip
    axes.set_xlim(0, 1.42 * most)
    axes.set_xticks([])
    axes.tick_params(left=False)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color(GRID)


def _colours(rows: Sequence[Row]) -> dict[str, str]:
    """A colour an operator, the same in every panel."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    palette = [to_hex(colour) for colour in colormaps["tab10"].colors]  # type: ignore[attr-defined]
    names = list(dict.fromkeys(row.operator for row in rows))
    return {name: palette[i] if i < len(palette) else "#8a8f98" for i, name in enumerate(names)}


def _operator(row: Row) -> str:
    return f"{row.label} {row.precision} × {row.nodes}" if row.operator else row.label


def short(row: Row) -> str:
    """A layer's name as a reader of the model knows it: its operator and where its weights stand."""
    if not row.operator:
        return row.label
    place = row.weight.removesuffix("_quantized").removesuffix(".weight") or row.label
    name = f"{row.operator} {place}"
    return name if len(name) <= NAME else f"{name[: NAME // 2]}…{name[-NAME // 2 :]}"

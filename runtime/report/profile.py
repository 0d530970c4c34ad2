"""A profile as a table and as comma-separated values."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from export.inspect.units import UNKNOWN, milliseconds, share, si
from runtime.layers import Row

COLUMNS = ("layer", "operator", "precision", "ms>", "share>", "calls>", "FLOPs>", "bytes>", "FLOPs a byte>",
           "GFLOP/s>", "of roof>")  # fmt: skip
CSV_COLUMNS = ("layer", "nodes", "kernel", "operator", "precision", "seconds", "share", "calls", "flops", "bytes",
               "gflops", "roof_seconds", "of_roof")  # fmt: skip
OPERATORS = ("operator", "ms>", "share>", "calls>")
NAME = 60  # characters of a layer's names in the table


def cells(rows: Sequence[Row], top: int) -> list[list[str]]:
    """The first `top` rows, one for all the others, and the total, in the order of COLUMNS."""
    whole = sum(row.kernel.seconds for row in rows)
    rest = rows[top:]
    lines = [_cells(row, whole) for row in rows[:top]]
    if rest:
        lines.append(_sum(f"{len(rest)} more", rest, whole))
    return [*lines, _sum("total", rows, whole)]


def by_operator(rows: Sequence[Row]) -> list[list[str]]:
    """A line for every operator, the longest first, in the order of OPERATORS."""
    whole = sum(row.kernel.seconds for row in rows)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.kernel.operator, []).append(row)
    times = {name: sum(row.kernel.seconds for row in group) for name, group in groups.items()}
    return [
        [name, milliseconds(seconds), share(seconds, whole), str(sum(row.kernel.calls for row in groups[name]))]
        for name, seconds in sorted(times.items(), key=lambda pair: -pair[1])
    ]


def render(rows: Sequence[Row]) -> str:
    """Every row with all its figures: seconds, bytes, empty where nothing is known."""
    whole = sum(row.kernel.seconds for row in rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in rows:
        kernel = row.kernel
        writer.writerow((
            row.name, " ".join(kernel.nodes), kernel.name, kernel.operator, kernel.precision, kernel.seconds,
            kernel.seconds / whole if whole else None, kernel.calls, row.flops, row.bytes,
            row.rate and row.rate / 1e9, row.limit, row.reached,
        ))  # fmt: skip
    return text.getvalue()


def _cells(row: Row, whole: float) -> list[str]:
    names = " + ".join(row.layers) or row.kernel.name
    kernel = row.kernel
    return [
        names if len(names) <= NAME else f"{names[: NAME - 1]}…", kernel.operator, kernel.precision,
        milliseconds(kernel.seconds), share(kernel.seconds, whole), str(kernel.calls), si(row.flops),
        si(row.bytes, "B"), UNKNOWN if row.intensity is None else f"{row.intensity:.1f}",
        UNKNOWN if row.rate is None else f"{row.rate / 1e9:.1f}",
        UNKNOWN if row.reached is None else f"{row.reached:.0%}",
    ]  # fmt: skip


def _sum(label: str, rows: Sequence[Row], whole: float) -> list[str]:
    seconds, flops = sum(row.kernel.seconds for row in rows), sum(row.flops or 0 for row in rows)
    limited = [row for row in rows if row.limit is not None]
    reached = sum(row.limit or 0.0 for row in limited) / seconds if limited and seconds else None
    return [
        label, "", "", milliseconds(seconds), share(seconds, whole), str(sum(row.kernel.calls for row in rows)),
        si(flops) if flops else UNKNOWN, si(sum(row.bytes or 0 for row in rows) or None, "B"), "",
        f"{flops / seconds / 1e9:.1f}" if flops and seconds else UNKNOWN,
        UNKNOWN if reached is None else f"{reached:.0%}",
    ]  # fmt: skip

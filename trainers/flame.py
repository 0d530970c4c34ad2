"""A flame graph of a Chrome trace: what calls what, as wide as it takes long. One SVG file, no script.

Events that lie inside another of the same thread are its callees; equal stacks are merged (Gregg, "The Flame Graph",
2016), here from the root downwards.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

WIDTH, ROW, TOP, LETTER = 1400, 18, 34, 6.6  # pixels; LETTER: a letter's width at 11 px monospaced
NARROWEST = 0.4  # pixels below which a box is left out
SHOWN = {"cpu_op", "user_annotation", "kernel"}


@dataclass
class Frame:
    """Calls of one name below one stack; microseconds, callees included."""

    name: str
    duration: float = 0.0
    calls: int = 0
    callees: dict[str, Frame] = field(default_factory=dict)

    def callee(self, name: str) -> Frame:
        return self.callees.setdefault(name, Frame(name))

    @property
    def depth(self) -> int:
        return 1 + max((frame.depth for frame in self.callees.values()), default=0)


def frames(trace: dict[str, Any], title: str) -> Frame:
    """The trace's complete events as one tree: the root, a frame for each thread or GPU stream, and their stacks."""
    threads: dict[str, list[dict[str, Any]]] = {}
    for event in trace["traceEvents"]:
        if event.get("ph") == "X" and event.get("cat") in SHOWN:
            place = "GPU stream" if event["cat"] == "kernel" else "thread"
            threads.setdefault(f"{place} {event['tid']}", []).append(event)
    root = Frame(title)
    for thread, events in threads.items():
        _nest(root.callee(thread), events)
    for frame in root.callees.values():
        frame.duration = sum(callee.duration for callee in frame.callees.values())
    root.duration = sum(frame.duration for frame in root.callees.values())
    return root


def _nest(thread: Frame, events: list[dict[str, Any]]) -> None:
    open_: list[tuple[float, Frame]] = []  # end and frame of the events around the current one
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        while open_ and event["ts"] >= open_[-1][0]:
            open_.pop()
        name = re.sub(r"^step \d+$", "step", event["name"])
        frame = (open_[-1][1] if open_ else thread).callee(name)
        frame.duration += event["dur"]
        frame.calls += 1
        open_.append((event["ts"] + event["dur"], frame))


def draw(trace: Path, title: str) -> str:
    """The SVG of a Chrome trace. Raises OSError and ValueError for a file that is none."""
    root = frames(json.loads(trace.read_text(encoding="utf-8")), title)
    height = TOP + root.depth * ROW + 8
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
            'font-family="monospace" font-size="11">',
            f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
            f'<text x="6" y="20" font-size="14">{escape(title)}: time by call stack, callees below; point at a box '
            "for its time</text>",
            *_boxes(root, 0.0, 0, root.duration or 1.0),
            "</svg>\n",
        ]
    )


def _boxes(frame: Frame, start: float, level: int, whole: float) -> Iterator[str]:
    """This frame's box and those of its callees, widest first; `start` in microseconds from the left edge."""
    x, width = WIDTH * start / whole, WIDTH * frame.duration / whole
    if width < NARROWEST:
        return
    y = TOP + level * ROW
    calls = f", {frame.calls} calls" if frame.calls else ""
    about = f"{frame.name}: {frame.duration / 1e3:.2f} ms, {100 * frame.duration / whole:.1f}%{calls}"
    yield (
        f'<g><title>{escape(about)}</title><rect x="{x:.2f}" y="{y}" width="{max(0.3, width - 0.5):.2f}" '
        f'height="{ROW - 1}" fill="{_colour(frame.name)}"/>'
    )
    room = int((width - 6) / LETTER)
    if room >= 3:
        label = frame.name if len(frame.name) <= room else f"{frame.name[: room - 1]}…"
        yield f'<text x="{x + 3:.2f}" y="{y + 13}">{escape(label)}</text>'
    yield "</g>"
    for callee in sorted(frame.callees.values(), key=lambda callee: -callee.duration):
        yield from _boxes(callee, start, level + 1, whole)
        start += callee.duration


def _colour(name: str) -> str:
    """A light warm colour, the same for a name everywhere."""
    return f"hsl({zlib.crc32(name.encode()) % 50 + 5}, 85%, 72%)"

"""How the line is shown while it runs: one live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from runtime.line.step import Step
from trainers import cli

DONE, FAILED, SKIPPED = "done", "failed", "skipped"
MARKS = {DONE: "✓", FAILED: "✗", SKIPPED: "-", "": " "}


class Display(Protocol):
    """What the driver tells."""

    def begin(self, number: int) -> None:
        """A step has been started."""

    def update(self, number: int, what: str, done: float, total: float | None) -> None:
        """What its command says of itself."""

    def end(self, number: int, state: str, line: str) -> None:
        """It is over; `line` is the last that its command printed."""


class Plain:
    """A line when a step begins, and one when it ends."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = steps

    def begin(self, number: int) -> None:
        step = self._steps[number]
        self._say(number, f"{step.title}: {step.shown}")

    def update(self, number: int, what: str, done: float, total: float | None) -> None:
        """Progress is for who watches."""

    def end(self, number: int, state: str, line: str) -> None:
        self._say(number, f"{self._steps[number].title} {state}: {line}")

    def _say(self, number: int, line: str) -> None:
        cli.console(stderr=True).print(f"[{number + 1}/{len(self._steps)}] {line}", markup=False)


class Live:
    """Every step a line with its bar, its time, and what it is doing now; below them what remains of the estimate."""

    def __init__(self, steps: Sequence[Step], bars: Any) -> None:
        self._steps, self._bars = steps, bars
        self._tasks = [bars.add_task(step.title, total=None, start=False, mark=" ", now=step.note or _about(step))
                       for step in steps]  # fmt: skip
        self._whole = bars.add_task("all", mark=" ", now="", total=sum(step.seconds or 0.0 for step in steps) or None)
        self._behind = 0.0  # what the steps that are over were estimated to take

    def begin(self, number: int) -> None:
        self._bars.start_task(self._tasks[number])
        self._bars.update(self._tasks[number], mark="▶", now="starting")

    def update(self, number: int, what: str, done: float, total: float | None) -> None:
        self._bars.update(self._tasks[number], now=what, completed=done, total=total)
        spent = self._bars.tasks[number].elapsed or 0.0
        self._bars.update(self._whole, completed=self._behind + min(spent, self._steps[number].seconds or 0.0))

    def end(self, number: int, state: str, line: str) -> None:
        task, finished = self._tasks[number], 1.0
        self._behind += self._steps[number].seconds or 0.0
        self._bars.update(task, mark=MARKS[state], now=line, completed=finished, total=finished)
        self._bars.stop_task(task)
        self._bars.update(self._whole, completed=self._behind)


@contextlib.contextmanager
def showing(steps: Sequence[Step]) -> Iterator[Display]:
    """The live display where stderr is a terminal."""
    shown = cli.console(stderr=True)
    if not shown.is_terminal:
        yield Plain(steps)
        return
    from rich import progress
    from rich.table import Column

    # Only the last column gives way where the window is narrow: however long a line is, bars and times stay.
    name = Column(no_wrap=True, overflow="ellipsis", max_width=max(shown.width // 3, 16))
    now = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    columns = (
        progress.TextColumn("{task.fields[mark]} {task.description}", markup=False, table_column=name),
        progress.BarColumn(bar_width=min(20, shown.width // 8)),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[now]}", markup=False, table_column=now),
    )
    with progress.Progress(*columns, console=shown, expand=True) as bars:
        yield Live(steps, bars)


def _about(step: Step) -> str:
    return f"about {duration(step.seconds)}" if step.seconds is not None else ""


def duration(seconds: float) -> str:
    """A time as one would say it."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"

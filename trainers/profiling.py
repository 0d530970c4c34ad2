"""`--profile`: what PyTorch's profiler saw in a few training steps, as files to look at.

Files in `artifacts/<name>/profile/`: `profiler_<name>_trace.json` (Chrome trace: open it in ui.perfetto.dev),
`profiler_<name>_summary.txt` and `profiler_<name>_flame.svg`; the trace once more in `logs/<name>/profile/`, as
TensorBoard's profiler plugin expects it.
"""

from __future__ import annotations

import argparse
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.manifest import UserError, atomic, link_or_copy, write_atomic

if TYPE_CHECKING:
    from torch.profiler import profile

    from trainers.train import Run

ROWS = 60  # of each table in the summary
NAMED = 3  # operators in the closing line


@dataclass(frozen=True)
class Window:
    """Steps to profile, counted from 1. One that was not asked for by numbers moves to where the run has steps."""

    first: int = 10
    count: int = 5
    movable: bool = False

    @property
    def last(self) -> int:
        return self.first + self.count - 1

    def __str__(self) -> str:
        return f"step {self.first}" if self.count == 1 else f"steps {self.first} to {self.last}"

    @classmethod
    def parse(cls, text: str) -> Window:
        """argparse type: `FIRST:COUNT`."""
        first, _, count = text.partition(":")
        made = cls(int(first), int(count or 1))
        if made.first < 1 or made.count < 1:
            raise argparse.ArgumentTypeError(f"{text} is not FIRST:COUNT, both from 1 on")
        return made

    def fitted(self, begin: int, ends: list[int]) -> Window:
        """The window inside the steps from `begin` + 1 on, not across any of `ends`: tests run between epochs.

        Raises UserError when it was asked for by numbers and does not fit.
        """
        if self.movable:
            end = next((end for end in ends if end >= begin + self.last), max(ends))
            start = max([begin, *(other for other in ends if other < end)])
            count = min(self.count, end - start)
            return Window(min(max(self.first, start + 1), end - count + 1), count)
        if self.first <= begin or self.last > ends[-1]:
            raise UserError(f"--profile: this run has steps {begin + 1} to {ends[-1]}, not {self}; choose among them")
        if crossed := [end for end in ends if self.first <= end < self.last]:
            raise UserError(f"--profile: an epoch ends between {self}, at step {crossed[0]}; choose steps of one epoch")
        return self


Window.parse.__func__.__name__ = "FIRST:COUNT"  # type: ignore[attr-defined]  # argparse names the type in its message


def quiet() -> None:
    """Keep the profiler's native code from printing to stderr; to be called before PyTorch is imported."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")


class Profiler:
    """Profiles a window of a run and writes the files; `lines` then says what was found."""

    def __init__(self, window: Window, folder: Path, logs: Path) -> None:
        self.window, self.folder, self.logs = window, folder / "profile", logs / folder.name / "profile"
        self.name = folder.name
        self.lines: list[str] = []

    def attach(self, run: Run) -> None:
        """Step in for the run's `advance` until the window is over; its own time does not count as training."""
        plain = run.advance
        self.window = window = self.window.fitted(run.step, run.pauses())
        recorded = recorder(run.device.type)

        def advance(batches: Iterator[Any]) -> None:
            from torch.profiler import record_function

            began, number = time.perf_counter(), run.step + 1
            if number == window.first:
                recorded.start()
            run.seconds -= time.perf_counter() - began
            if number < window.first:
                plain(batches)
                return
            with record_function(f"step {number}"):
                plain(batches)
            began = time.perf_counter()
            if number == window.last:
                _wait(run.device.type)
                recorded.stop()
                run.advance = plain
                self._write(recorded, run.device.type)
            run.seconds -= time.perf_counter() - began

        run.advance = advance

    def _write(self, recorded: profile, device: str) -> None:
        stem = self.folder / f"profiler_{self.name}"
        trace, summary, flame = write(recorded, device, stem, f"{self.name}, {self.window}")
        # As torch.profiler.tensorboard_trace_handler names it; a recorder writes its trace only once.
        link_or_copy(trace, self.logs / f"{socket.gethostname()}_{os.getpid()}.{time.time_ns()}.pt.trace.json")
        self.lines = [
            f"profile: {trace} (open in ui.perfetto.dev), {summary.name}, {flame.name}; "
            f"tensorboard --logdir {self.logs.parent}",
            f"costliest operators of {self.window}, by their own time on the {_place(device)}: "
            + ", ".join(f"{name} {100 * share:.1f}%" for name, share in costliest(recorded, device)[:NAMED]),
        ]


def write(recorded: profile, device: str, stem: Path, title: str) -> tuple[Path, Path, Path]:
    """Leave `<stem>_trace.json` (a Chrome trace), `<stem>_summary.txt` and `<stem>_flame.svg`; returns their paths."""
    from trainers.flame import draw

    trace, summary, flame = (Path(f"{stem}_{part}") for part in ("trace.json", "summary.txt", "flame.svg"))
    with atomic(trace) as temporary:
        recorded.export_chrome_trace(str(temporary))
    write_atomic(summary, _summary(recorded, device).encode())
    write_atomic(flame, draw(trace, title).encode())
    return trace, summary, flame


def costliest(recorded: profile, device: str) -> list[tuple[str, float]]:
    """(operator, its share of all operators' self time), largest first; annotations are not operators."""
    from torch.autograd import DeviceType  # type: ignore[attr-defined]

    times = {
        event.key: event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        for event in recorded.key_averages()
        if event.device_type == DeviceType.CPU and not event.is_user_annotation and event.key != "[memory]"
    }
    total = sum(times.values()) or 1.0
    return sorted(((name, value / total) for name, value in times.items()), key=lambda pair: -pair[1])


def recorder(device: str) -> profile:
    """PyTorch's profiler with shapes and memory, not yet started."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    return profile(activities=activities, record_shapes=True, profile_memory=True, acc_events=True)


def _summary(recorded: profile, device: str) -> str:
    order = f"self_{'device' if device == 'cuda' else 'cpu'}_time_total"
    tables = [
        averages.table(sort_by=order, row_limit=ROWS, max_name_column_width=60, max_shapes_column_width=100)
        for averages in (recorded.key_averages(), recorded.key_averages(group_by_input_shape=True))
    ]
    return f"By operator\n{tables[0]}\nBy operator and input shapes\n{tables[1]}"


def _wait(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def _place(device: str) -> str:
    return "GPU" if device == "cuda" else "CPU"

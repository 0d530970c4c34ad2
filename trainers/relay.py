"""Progress of a command that another one has started: lines of JSON on a pipe, in place of bars on the terminal."""

from __future__ import annotations

import functools
import io
import json
import os
import signal
from typing import Any

VARIABLE = "FASTFORM_PROGRESS"  # a file descriptor that the parent reads
A_SECOND = 4  # lines at most


@functools.cache
def descriptor() -> int | None:
    """Where progress goes, if a parent asked for it; taken from the environment, so that no worker inherits it."""
    text = os.environ.pop(VARIABLE, None)
    return int(text) if text else None


def bars(to: int) -> Any:
    """A rich Progress that shows nothing here and tells the parent what it would show.

    A parent that is gone wants nothing more: the command then ends as after Ctrl-C.
    """
    from rich.console import Console
    from rich.progress import Progress

    class Relay(Progress):
        def get_renderables(self) -> Any:
            running = [task for task in self.tasks if not task.finished]
            if running:
                task = running[-1]
                _tell(to, {"what": task.description, "done": task.completed, "total": task.total})
            return ()

    class Nowhere(io.TextIOBase):
        def write(self, text: str) -> int:
            return len(text)

    console = Console(file=Nowhere(), force_terminal=True)  # type: ignore[arg-type]  # it is written to, and no more
    return Relay(console=console, refresh_per_second=A_SECOND, redirect_stdout=False, redirect_stderr=False)


def _tell(to: int, line: dict[str, Any]) -> None:
    try:
        os.write(to, (json.dumps(line) + "\n").encode())
    except BrokenPipeError:
        os.kill(os.getpid(), signal.SIGINT)

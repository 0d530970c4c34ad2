"""Running the steps: each a process of its own, whose words go to a log and whose progress goes to the display."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from runtime.line.display import DONE, FAILED, SKIPPED, Display
from runtime.line.step import Step
from trainers import relay
from trainers.cli import FAILED as CHECK_FAILED
from trainers.cli import INTERRUPTED, OK
from trainers.manifest import UserError

COMMAND = (sys.executable, "-m")
Tell = Callable[[dict[str, Any]], None]


@dataclass
class Outcome:
    """What was wrong, a line each, and the models whose training failed."""

    problems: list[str] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)


def drive(steps: Sequence[Step], log: Path, display: Display) -> Outcome:
    """Run what is left to do.

    A check that failed is noted, and the line goes on: what depends on it says so itself. Where training failed, the
    rest of that model is left out. Raises UserError with a command's own line where there is something to mend, and
    KeyboardInterrupt once the running command has ended.
    """
    outcome, everyone = Outcome(), {model for step in steps for model in step.models}
    problems, lost = outcome.problems, outcome.lost
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as written:
        for number, step in enumerate(steps):
            if not step.command:
                display.end(number, DONE, step.note)
                continue
            if lost and lost.issuperset(step.models or everyone):
                display.end(number, SKIPPED, "its training failed")
                continue
            display.begin(number)
            command = [word for word in step.command if word not in lost]
            status, last = _run(command, written, functools.partial(_pass_on, display, number))
            if status == INTERRUPTED:
                raise KeyboardInterrupt
            display.end(number, DONE if status == OK else FAILED, last)
            if status not in (OK, CHECK_FAILED):
                before = f"; before that: {'; '.join(problems)}" if problems else ""
                said = last.removeprefix("error: ") if status > 0 else f"killed by {signal.Signals(-status).name}"
                raise UserError(f"{step.title}: {said} (all that it said is in {log}){before}")
            if status == CHECK_FAILED:
                problems.append(f"{step.title}: {last}")
                lost |= {*step.models} if step.stage == "train" else set()
    return outcome


def _pass_on(display: Display, number: int, line: dict[str, Any]) -> None:
    display.update(number, line["what"], line["done"], line["total"])


def _run(command: Sequence[str], log: IO[str], tell: Tell) -> tuple[int, str]:
    """Run one command to its end; its exit status and the last line that it printed."""
    reading, writing = os.pipe()
    log.write(f"$ python -m {' '.join(command)}\n")
    process = subprocess.Popen(
        [*COMMAND, *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, relay.VARIABLE: str(writing)}, pass_fds=(writing,),
        start_new_session=True,  # Ctrl-C comes to it from here, once
    )  # fmt: skip
    os.close(writing)
    assert process.stdout is not None
    listener = threading.Thread(target=_listen, args=(reading, tell), daemon=True)
    listener.start()
    last = ""
    try:
        for line in process.stdout:
            log.write(line)
            log.flush()
            last = line.strip() or last
        return process.wait(), last
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        for line in process.stdout:
            log.write(line)
        process.wait()
        raise
    finally:
        process.stdout.close()
        listener.join()


def _listen(descriptor: int, tell: Tell) -> None:
    """Pass on what a command says of its progress, until it has ended."""
    with os.fdopen(descriptor) as lines:
        for line in lines:
            tell(json.loads(line))

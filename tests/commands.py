"""Running the product's commands as a user does."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import forked
import pytest


def run(*arguments: object, cwd: Path | None = None, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    """`python -m ARGUMENTS…` with its output and exit status; in a run of the whole suite by a fork."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return forked.run(*map(str, arguments), cwd=cwd, timeout=timeout)
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, cwd=cwd)


def succeed(*arguments: object, cwd: Path | None = None, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    """`run`, and the command must end with status 0."""
    done = run(*arguments, cwd=cwd, timeout=timeout)
    assert done.returncode == 0, f"{arguments}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def expect_refusal(*arguments: object, cwd: Path | None = None, says: str) -> None:
    """The command must end with status 2 and a last line on stderr that holds `says`; no traceback."""
    done = run(*arguments, cwd=cwd)
    assert done.returncode == 2, f"{arguments}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    assert says in done.stderr.strip().splitlines()[-1], done.stderr


def on_a_terminal(width: int, *arguments: object, **variables: str) -> tuple[int, str]:
    """`python ARGUMENTS…` in a window of this width: its exit status, and all that it said."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    plain = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    started = subprocess.Popen([sys.executable, *map(str, arguments)], stdout=child, stderr=child, stdin=child,
                               env={**plain, "TERM": "xterm", **variables})  # fmt: skip
    os.close(child)
    said = b""
    with contextlib.suppress(OSError):  # the other side is closed
        while True:
            said += os.read(parent, 4096)
    os.close(parent)
    return started.wait(60), said.decode()


def lines_of(said: str) -> list[str]:
    """What a terminal was told, without what moves its cursor or styles its letters."""
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[?0-9;]*[A-HJKhl]", "\n", re.sub(r"\x1b\[[0-9;]*m", "", said)))


def wait_until_alone(folder: Path, seconds: float = 120) -> None:
    """Until no process is left that has this folder on its command line; fails after so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if str(folder) not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout:
            return
        time.sleep(0.5)
    pytest.fail("a command outlived the run that had started it")

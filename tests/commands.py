"""Running the product's commands as a user does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def run(*arguments: object, cwd: Path | None = None, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    """`python -m ARGUMENTS…` with its output and exit status."""
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

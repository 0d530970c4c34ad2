"""What commands make of streams and names that cannot hold every letter, or are not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("command", [("trainers",), ("runtime", "roofline"), ("export.diff",)])
def test_help_is_shown_where_letters_are_missing(command: tuple[str, ...]) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-m", *command, "--help"], capture_output=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()


def test_no_stdout_is_no_error() -> None:
    command = f"exec {sys.executable} -m runtime completion bash >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_name_that_is_not_utf8_is_refused_in_a_line(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.onnx"
    Path(os.fsdecode(path)).write_bytes(b"")
    done = subprocess.run([sys.executable, "-m", "export.ops", path], capture_output=True, check=False)
    assert done.returncode == 2
    assert b"is not UTF-8" in done.stderr
    assert done.stderr.count(b"\n") == 1

"""Real artifacts for the runtime's tests: a small model trained for a few steps, exported and quantized."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run one of the packages as a user would."""
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], capture_output=True, text=True, timeout=900, check=False
    )


def make(base: Path) -> Path:
    """The folder of one model: the torch artifact, fp32 and int8 ONNX, and their reference; made once a test run."""
    folder, cache = base / "artifacts", base / "cache"
    if folder.exists():
        return folder / "simplecnn"
    for arguments in (
        ("trainers", "simplecnn", "--steps", 60, "--device", "cpu"),
        ("export", "simplecnn", "--quantize", "--target", "cpu", "--verify-images", 300),
    ):
        done = command(*arguments, "--artifacts", folder, "--cache", cache)
        assert done.returncode == 0, done.stderr
    return folder / "simplecnn"

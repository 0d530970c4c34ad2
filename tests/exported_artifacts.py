"""Real artifacts that need no training: simplecnn with random weights, exported in fp32 and int8 by the command."""

from __future__ import annotations

from pathlib import Path

from checkpoints import random_checkpoint
from commands import succeed

SMALL = ("--verify-images", 16, "--calibration-images", 8, "--target", "cpu")


def make(base: Path) -> Path:
    """The artifacts folder; made once a test run. What changes it takes a copy."""
    folder = base / "exported"
    if not folder.exists():
        random_checkpoint(folder, "simplecnn")
        succeed("export", "simplecnn", "--quantize", *SMALL, "--artifacts", folder)
    return folder

"""Real artifacts for the runtime's tests: a small model trained for a few steps, exported and quantized."""

from __future__ import annotations

from pathlib import Path

from commands import succeed


def make(base: Path) -> Path:
    """The folder of one model: the torch artifact, fp32 and int8 ONNX, and their reference; made once a test run."""
    folder, cache = base / "artifacts", base / "cache"
    if folder.exists():
        return folder / "simplecnn"
    for arguments in (
        ("trainers", "simplecnn", "--steps", 60, "--device", "cpu"),
        ("export", "simplecnn", "--quantize", "--target", "cpu", "--verify-images", 300),
    ):
        succeed(*arguments, "--artifacts", folder, "--cache", cache)
    return folder / "simplecnn"

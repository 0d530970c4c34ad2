"""What docs/adding.md shows can be applied, and does what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DIFFS = re.findall(r"^```diff\n(.*?)^```", (ROOT / "docs" / "adding.md").read_text(), re.M | re.S)


@pytest.mark.slow
def test_a_model_a_backend_a_rewrite_and_a_precision_are_added(tmp_path: Path) -> None:
    for package in ("trainers", "export", "runtime"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    assert len(DIFFS) == 4
    for diff in DIFFS:
        done = subprocess.run(["git", "apply", "--recount", "--unidiff-zero", "-"], input=diff, cwd=tmp_path,
                              capture_output=True, text=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr

    def succeed(*words: object) -> str:
        done = subprocess.run([sys.executable, "-m", *map(str, words)], cwd=tmp_path, capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=False)  # fmt: skip
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    few = ("--verify-images", 64, "--calibration-images", 32)
    succeed("trainers", "tinycnn", "--steps", 2)
    assert "-exact-bf16-weights" in succeed("export", "tinycnn", "--quantize", "bf16-weights", *few)
    succeed("export", "simplecnn", "--train", "--exporter", "eager", "--rewrite", "flatten-to-reshape", *few)
    said = succeed("runtime", "bench", "tinycnn", "--backends", "onnxruntime,interpreted", "--seconds", "0.1",
                   "--rounds", 2, "--processes", 1, "--device", "cpu")  # fmt: skip
    assert re.search(r"^ interpreted .* verified", said, re.M)

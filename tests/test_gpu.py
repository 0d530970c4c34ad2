"""What only an NVIDIA GPU can show: AMP and compiled training on it, and its engines. `make test-gpu` runs these."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import succeed

from trainers.checkpoint import Checkpoint
from trainers.manifest import gpu

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.skipif(gpu() is None, reason="needs an NVIDIA GPU")]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("compile", ["--compile", "--no-compile"])
def test_training_on_the_gpu_learns(tmp_path: Path, precision: str, compile: str) -> None:
    succeed(
        "trainers", "resnet18", "--device", "cuda", "--precision", precision, compile, "--artifacts", tmp_path,
        timeout=600,
    )  # fmt: skip
    record = Checkpoint.load(tmp_path / "resnet18" / "checkpoint.json")
    assert record.metrics.top1 > 70
    assert record.metrics.peak_memory_bytes > 1 << 20


def test_the_gpus_engines_are_measured_and_right(tmp_path: Path) -> None:
    succeed("trainers", "resnet18", "--device", "cuda", "--artifacts", tmp_path, timeout=600)
    succeed("export", "resnet18", "--quantize", "fp16,int8", "--artifacts", tmp_path, timeout=600)
    done = succeed("runtime", "bench", "resnet18", "--device", "cuda", "--json", "--artifacts", tmp_path, timeout=600)
    rows = json.loads(done.stdout)["measurements"]
    measured = {row["cell"]["backend"] for row in rows if not row["error"]}
    assert {"eager", "compiled", "onnxruntime"} <= measured

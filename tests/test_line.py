"""The whole line on real images: train, export, quantize, verify, benchmark."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from commands import succeed

from trainers.manifest import gpu

pytestmark = pytest.mark.slow


def test_mnist_from_files_to_a_latency_table(real_data: Path, tmp_path: Path) -> None:
    place = ("--artifacts", tmp_path)
    trained = json.loads(
        succeed("trainers", "simplecnn", "--data", real_data / "mnist-10k", "--device", "cpu", "--json", *place).stdout
    )
    assert trained["metrics"]["top1"] >= 97
    made = json.loads(
        succeed("export", "simplecnn", "--quantize", "--verify-images", "all", "--json", *place).stdout
    )["artifacts"]  # fmt: skip
    fp32, int8 = made[1]["parity"], made[2]["parity"]
    assert fp32["images"] == int8["images"] == 1000
    assert fp32["accuracy"] == trained["metrics"]["top1"]
    assert int8["drop"] <= 1
    assert len(made) == 3 + (importlib.util.find_spec("nncf") is not None and gpu() is None)  # OpenVINO's own int8
    engines = ("--backends", "eager,onnxruntime,openvino")
    done = succeed("runtime", "bench", "simplecnn", "--device", "cpu", *engines, "--quick", *place)
    assert "times faster than eager fp32" in done.stdout
    assert "netron" in done.stdout
    report = next((tmp_path / "reports").glob("*.json"))
    rows = [row for row in json.loads(report.read_text())["measurements"] if not row["error"]]
    measured = {(row["cell"]["artifact"], row["cell"]["backend"]) for row in rows}
    assert {
        ("simplecnn-torch-exact-fp32", "eager"),
        ("simplecnn-dynamo-exact-fp32", "onnxruntime"),
        ("simplecnn-dynamo-exact-int8", "onnxruntime"),
    } <= measured


def test_tiny_imagenet_trains_a_small_convnext_and_resumes(real_data: Path, tmp_path: Path) -> None:
    flags = (
        "trainers", "convnext", "--data", real_data / "tiny-imagenet-200.zip", "--set", "size=32",
        "--set", "blocks=1,1,1,1", "--steps", 12, "--batch-size", 32, "--artifacts", tmp_path, "--device", "cpu",
    )  # fmt: skip
    done = succeed(*flags)
    assert "results are not comparable" in done.stderr  # a subset is not the official archive, and that is said
    record = json.loads((tmp_path / "convnext" / "checkpoint.json").read_text())
    assert record["data"]["name"] == "tinyimagenet"
    assert record["data"]["splits"]["test"]["count"] == 4000
    assert "already finished" in succeed(*flags, "--resume").stderr

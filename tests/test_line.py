"""The whole line on real images: train, export, quantize, verify, benchmark, report."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import succeed, wait_until_alone

from export.artifact import find
from export.costs import Costs
from runtime.results import Report
from runtime.saved import latest
from trainers.checkpoint import Checkpoint
from trainers.manifest import gpu

pytestmark = pytest.mark.slow


def test_mnist_from_files_to_a_report_though_killed_on_the_way(real_data: Path, tmp_path: Path) -> None:
    command = ("runtime", "run", "simplecnn", "--data", real_data / "mnist-10k", "--quick", "--device", "cpu",
               "--artifacts", tmp_path)  # fmt: skip
    kill_after("step ", *command)

    done = succeed(*command)
    assert done.stdout.splitlines()[-1] == f"OK: 6 steps; see {tmp_path / 'reports' / 'report.html'}"
    assert "fastest verified variant within 1 point of accuracy" in done.stdout
    assert (tmp_path / "reports" / "report.html").stat().st_size > 10_000
    trained = Checkpoint.load(tmp_path / "simplecnn" / "checkpoint.json")
    assert trained.metrics is not None
    assert trained.metrics.top1 >= 97
    found = {one.name: one.record.parity for one in find(tmp_path / "simplecnn") if one.record}
    int8 = found["simplecnn-dynamo-exact-int8"]
    assert int8.images == 1000
    assert int8.checkpoint_accuracy == trained.metrics.top1
    assert int8.drop is not None
    assert int8.drop <= 1
    assert len(found) == 3 + (importlib.util.find_spec("nncf") is not None and gpu() is None)  # OpenVINO's own int8
    report = Report.load(latest(tmp_path))
    measured = {(row.cell.artifact, row.cell.backend) for row in report.measurements if row.valid}
    assert {
        ("simplecnn-torch-exact-fp32", "eager"),
        ("simplecnn-dynamo-exact-fp32", "onnxruntime"),
        ("simplecnn-dynamo-exact-int8", "onnxruntime"),
    } <= measured

    profiled = {Costs.load(path).sha256 for path in (tmp_path / "simplecnn" / "profile").glob("*.json")}
    assert profiled <= {subject.sha256 for subject in report.subjects} and len(profiled) == 1
    assert "Layers of simplecnn" in (tmp_path / "reports" / "report.html").read_text()

    planned = json.loads(succeed(*command, "--dry-run", "--json").stdout)["steps"]
    assert [step["step"] for step in planned if step["command"]] == ["report"], "all else is there"
    damaged = tmp_path / "simplecnn" / "simplecnn-dynamo-exact-fp32.onnx"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    planned = json.loads(succeed(*command, "--dry-run", "--json").stdout)["steps"]
    assert [step["step"] for step in planned if step["command"]] == [
        "export simplecnn", "bench simplecnn", "profile simplecnn", "report"
    ]  # fmt: skip


def kill_after(said: str, *arguments: object) -> None:
    """Start a run, kill it when its log says this, and wait until the command that it had started has ended."""
    folder = Path(str(arguments[-1]))
    started = subprocess.Popen([sys.executable, "-m", *map(str, arguments)], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    until = time.monotonic() + 120
    while not any(said in log.read_text() for log in folder.glob("reports/logs/*.log")):
        assert time.monotonic() < until
        assert started.poll() is None
        time.sleep(0.05)
    started.kill()
    started.wait()
    wait_until_alone(folder)


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

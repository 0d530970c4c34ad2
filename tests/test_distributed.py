"""Several processes, started by the real torchrun, train what one process trains; one that dies is no loss."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import expect_refusal, run, succeed
from safetensors.torch import load_file

from trainers import models
from trainers.batches import IGNORED, evaluation_batches, training_batches
from trainers.checkpoint import Checkpoint
from trainers.distributed import ALONE, World
from trainers.manifest import UserError
from trainers.open import open_dataset
from trainers.spec import Preprocess, Recipe

CPU = torch.device("cpu")
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", 2)
COMMON = ("--device", "cpu", "--precision", "fp32")
# Every technique that has to know of the other processes, on data of which each image is changed by its own draw.
SIMPLE = (
    "simplecnn", *COMMON, "--steps", 12, "--set", "crop=2", "--set", "flip=true", "--set", "erase=0.3",
    "--set", "accumulate=2", "--set", "clip_norm=0.5", "--set", "ema=0.5",
)  # fmt: skip
CONVNEXT = (
    "convnext", *COMMON, "--set", "size=32", "--set", "blocks=1,1,1,1", "--batch-size", 8, "--steps", 4,
    "--set", "clip_norm=1",
)  # fmt: skip
SGD = ("--set", "optimizer=sgd", "--set", "lr=0.05")
LONG = ("simplecnn", *COMMON, "--steps", 100, "--set", "save_every=20", "--set", "crop=2")

# Two half batches are summed in another order than one batch: gradients differ by rounding, 1e-7 of their size. SGD
# hands that on as it is. AdamW divides a gradient by its own size, so that where it is nearly zero rounding may decide
# the sign of a step: there the bound is a twentieth of the steps' length altogether, lr * steps.
TOLERANCE = {"sgd": 2e-6, "adamw": 12 * 3e-3 / 20}


def weights(folder: Path, model: str) -> dict[str, torch.Tensor]:
    return load_file(folder / model / "checkpoint.safetensors")


def record(folder: Path, model: str) -> Checkpoint:
    return Checkpoint.load(folder / model / "checkpoint.json")


def fresh(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The weights that the run began with."""
    torch.manual_seed(checkpoint.recipe.seed)
    module = models.get(checkpoint.model).build(
        num_classes=len(checkpoint.classes), input_shape=checkpoint.input_shape, **checkpoint.options
    )
    return module.state_dict()


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


def expect_same_training(alone: Path, together: Path, model: str, tolerance: float) -> None:
    """Equal weights up to the tolerance, which training has left far behind; equal figures in the record."""
    one, two = record(alone, model), record(together, model)
    assert (one.processes, two.processes) == (1, 2)
    assert two.metrics.images == one.metrics.images
    assert two.metrics.train_loss == pytest.approx(one.metrics.train_loss, rel=1e-3)
    assert two.metrics.loss == pytest.approx(one.metrics.loss, rel=1e-3)
    assert largest_difference(weights(alone, model), weights(together, model)) < tolerance
    assert largest_difference(weights(alone, model), fresh(one)) > 5 * tolerance


@pytest.mark.parametrize("optimizer", [SGD, ()], ids=["sgd", "adamw"])
def test_two_processes_train_what_one_does(tmp_path: Path, optimizer: tuple[str, ...]) -> None:
    succeed("trainers", *SIMPLE, *optimizer, "--artifacts", tmp_path / "one")
    done = succeed(*TORCHRUN, "-m", "trainers", *SIMPLE, *optimizer, "--artifacts", tmp_path / "two")
    assert done.stderr.count("epoch 1 ") == 1  # one of them speaks
    assert "cpu, 2 processes" in done.stderr
    expect_same_training(tmp_path / "one", tmp_path / "two", "simplecnn", TOLERANCE["sgd" if optimizer else "adamw"])


@pytest.mark.slow
def test_two_processes_train_the_convnext_that_one_does(tmp_path: Path) -> None:
    succeed("trainers", *CONVNEXT, *SGD, "--artifacts", tmp_path / "one")
    succeed(*TORCHRUN, "-m", "trainers", *CONVNEXT, *SGD, "--artifacts", tmp_path / "two")
    expect_same_training(tmp_path / "one", tmp_path / "two", "convnext", TOLERANCE["sgd"])


@pytest.mark.slow
@pytest.mark.parametrize(("model", "flags"), [("simplecnn", SIMPLE), ("convnext", CONVNEXT)])
def test_shards_train_what_a_whole_model_does(tmp_path: Path, model: str, flags: tuple[object, ...]) -> None:
    plain = ("--set", "rewrites=none")  # as the shards are
    succeed("trainers", *flags, *SGD, *plain, "--artifacts", tmp_path / "one")
    succeed(*TORCHRUN, "-m", "trainers", *flags, *SGD, "--shard", "--artifacts", tmp_path / "two")
    expect_same_training(tmp_path / "one", tmp_path / "two", model, TOLERANCE["sgd"])


@pytest.mark.slow
def test_resnet18_learns_as_well_in_two_processes(tmp_path: Path) -> None:
    """Its batch norms see half of each batch, so weights differ and accuracy is compared."""
    flags = ("resnet18", *COMMON, "--steps", 30, "--batch-size", 64)
    succeed("trainers", *flags, "--artifacts", tmp_path / "one")
    succeed(*TORCHRUN, "-m", "trainers", *flags, "--artifacts", tmp_path / "two")
    one, two = (record(tmp_path / name, "resnet18").metrics.top1 for name in ("one", "two"))
    assert two > 30  # chance is 10
    assert two > one - 20


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of LONG that nothing has stopped."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    succeed(*TORCHRUN, "-m", "trainers", *LONG, "--artifacts", folder)
    return folder


def test_a_killed_worker_is_started_again_and_the_result_is_the_same(uninterrupted: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", *map(str, TORCHRUN), "--max-restarts", "3", "-m", "trainers", *map(str, LONG)]
    agent = started([*command, "--artifacts", str(tmp_path / "cut")], tmp_path / "cut" / "simplecnn")
    os.kill(max(children(agent.pid)), signal.SIGKILL)
    said = said_by(agent)
    assert agent.returncode == 0, said
    assert "resumed at step" in said
    whole, cut = (record(folder, "simplecnn") for folder in (uninterrupted, tmp_path / "cut"))
    assert cut.weights == whole.weights  # the very bytes
    assert not list((tmp_path / "cut" / "simplecnn").glob("state-*"))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["--shard", "--set=keep_memory=true"], ids=["shards", "replicas"])
def test_ctrl_c_saves_a_state_to_go_on_from(uninterrupted: Path, tmp_path: Path, how: str) -> None:
    flags, whole = ("-m", "trainers", *LONG, how), uninterrupted
    if how == "--shard":  # sums in another order; how memory is kept changes nothing
        whole = tmp_path / "whole"
        succeed(*TORCHRUN, *flags, "--artifacts", whole)
    command = [sys.executable, "-m", *map(str, TORCHRUN), *map(str, flags), "--artifacts", str(tmp_path / "cut")]
    folder = tmp_path / "cut" / "simplecnn"
    agent = started(command, folder)
    agent.send_signal(signal.SIGINT)
    assert said_by(agent).count("\ninterrupted: ") == 1
    assert not (folder / "checkpoint.json").exists()
    assert "resumed at step" in succeed(*command[2:], "--resume").stderr
    assert record(tmp_path / "cut", "simplecnn").weights == record(whole, "simplecnn").weights


def started(command: list[str], folder: Path) -> subprocess.Popen[str]:
    """The command, running, once it has left a training state in the folder."""
    agent = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while agent.poll() is None and not list(folder.glob("state-*.json")):
        time.sleep(0.005)
    return agent


def said_by(agent: subprocess.Popen[str]) -> str:
    """What the command says on stderr up to its end."""
    try:
        return agent.communicate(timeout=600)[1]
    except subprocess.TimeoutExpired:
        agent.terminate()  # torchrun ends its processes
        agent.communicate()
        raise


def children(pid: int) -> list[int]:
    lines = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    return [int(child) for child, parent in map(str.split, lines.splitlines()) if int(parent) == pid]


@pytest.mark.parametrize("size", [2, 4])
def test_the_parts_of_a_batch_are_the_batch(size: int) -> None:
    split, preprocess = synthetic()
    recipe = Recipe(batch_size=16, crop=2, flip=True, erase=0.5)
    whole = list(training_batches(split, preprocess, recipe, 1, 3, CPU))
    parts = [
        list(training_batches(split, preprocess, recipe, 1, 3, CPU, World(rank=rank, size=size)))
        for rank in range(size)
    ]
    assert len(whole) > 2
    for batch, *shares in zip(whole, *parts, strict=True):
        assert torch.equal(batch[0], torch.cat([images for images, _ in shares]))
        assert torch.equal(batch[1], torch.cat([labels for _, labels in shares]))


def test_every_image_is_judged_once_in_equally_many_batches() -> None:
    split, preprocess = synthetic()
    indices = np.arange(33)  # 3 processes, batches of 16: the last holds one image, so two processes have none
    truth = torch.from_numpy(split.labels[indices])
    parts = [
        [labels for _, labels in evaluation_batches(split, preprocess, 16, CPU, indices, World(rank=rank, size=3))]
        for rank in range(3)
    ]
    assert [len(part) for part in parts] == [3, 3, 3]
    judged = torch.cat([labels for step in zip(*parts, strict=True) for labels in step])
    assert torch.equal(judged[judged != IGNORED], truth)


def synthetic():  # type: ignore[no-untyped-def]
    data = open_dataset("synthetic", shape=(1, 28, 28), num_classes=10)
    return data.splits["train"], Preprocess(size=(28, 28), resize=28, mean=data.mean, std=data.std)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--batch-size", 63), "error: a batch of 63 images cannot be divided among 2 processes; give --batch-size 62"),
        (("--set", "lr=1e30"), "FAILED: the loss is"),
    ],
)
def test_what_goes_wrong_is_said_once(tmp_path: Path, flags: tuple[object, ...], says: str) -> None:
    done = run(*TORCHRUN, "-m", "trainers", "simplecnn", *COMMON, *flags, "--artifacts", tmp_path / "out")
    assert done.returncode == 1  # torchrun's own, whatever its processes' was
    assert done.stderr.count(says) == 1, done.stderr
    assert "[rank" not in done.stderr  # no traceback of a worker
    assert not (tmp_path / "out" / "simplecnn" / "checkpoint.json").exists()


def test_shards_of_one_process_are_refused(tmp_path: Path) -> None:
    expect_refusal("trainers", "simplecnn", "--shard", "--artifacts", tmp_path / "out", says="start it by torchrun")


def test_a_world_is_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    assert World.of_environment() == ALONE
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    world = World.of_environment()
    assert world == World(rank=5, size=8, local_rank=1, local_size=4, restarts=2)
    assert world.part(32) == slice(20, 24)
    with pytest.raises(UserError, match="give --batch-size 32"):
        world.part(33)

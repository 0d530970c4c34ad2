"""Training by its own command, on the smallest model: checkpoints, resuming, bad input."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import expect_refusal, run, succeed

from trainers.batches import augment
from trainers.checkpoint import Checkpoint, load_model
from trainers.diagnosis import explain
from trainers.learner import Learner
from trainers.manifest import UserError, sha256
from trainers.optim import learning_rate, make_optimizer
from trainers.preprocess import prepare
from trainers.spec import Preprocess, Recipe


def trained(folder: Path, *flags: object, model: str = "simplecnn") -> Checkpoint:
    succeed("trainers", model, "--artifacts", folder, "--device", "cpu", *flags)
    return Checkpoint.load(folder / model / "checkpoint.json")


def test_training_leaves_a_checkpoint_that_loads_and_its_curve(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "artifacts"
    done = succeed("trainers", "simplecnn", "--artifacts", folder, "--device", "cpu", "--epochs", 2, "--json")
    document = json.loads(done.stdout)
    assert "epoch 2" in done.stderr
    assert "chance 10.0%" in done.stderr
    record = Checkpoint.load(folder / "simplecnn" / "checkpoint.json")
    assert document["metrics"]["top1"] == record.metrics.top1 > 50
    assert record.metrics.split == "test"
    module = load_model(record, folder / "simplecnn")
    assert not module.training
    events = EventAccumulator(str(tmp_path / "logs" / "simplecnn" / "train"))
    events.Reload()
    shown = [round(point.value, 2) for point in events.Scalars("test/accuracy")]
    assert shown == [round(point.test_top1, 2) for point in record.curve]
    assert sum(p.numel() for p in module.parameters()) == record.parameters
    assert sorted(p.name for p in (folder / "simplecnn").iterdir()) == ["checkpoint.json", "checkpoint.safetensors"]


def test_equal_runs_give_equal_bytes_and_a_replaced_checkpoint_is_kept(tmp_path: Path) -> None:
    first = trained(tmp_path / "a", "--steps", 5)
    again = trained(tmp_path / "b", "--steps", 5)
    assert first.weights == again.weights
    other = trained(tmp_path / "a", "--steps", 6)
    kept = tmp_path / "a" / "simplecnn" / f"checkpoint-{first.weights.sha256[:8]}.safetensors"
    assert sha256(kept) == first.weights.sha256 != other.weights.sha256
    assert load_model(Checkpoint.load(kept.with_suffix(".json")), kept.parent)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns(tmp_path: Path, precision: str) -> None:
    record = trained(tmp_path, "--epochs", 1, "--precision", precision)
    assert record.recipe.precision == precision
    assert record.metrics.top1 > 30


@pytest.mark.slow
def test_compiled_training_saves_the_plain_module(tmp_path: Path) -> None:
    record = trained(tmp_path, "--steps", 20, "--compile")
    assert record.recipe.compile
    assert load_model(record, tmp_path / "simplecnn")


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    flags = ["--epochs", "3", "--set", "save_every=20", "--set", "crop=2", "--set", "flip=true", "--device", "cpu"]
    whole = trained(tmp_path / "whole", *flags)
    command = [sys.executable, "-m", "trainers", "simplecnn", "--artifacts", str(tmp_path / "cut"), *flags]
    folder = tmp_path / "cut" / "simplecnn"
    victim = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while victim.poll() is None and not (folder / "state-00000040.json").exists():
        time.sleep(0.005)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    assert not (folder / "checkpoint.json").exists()
    newest = max(folder.glob("state-*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1])  # and the newest state is damaged: the one before must serve
    done = succeed(*command[2:], "--resume")
    assert "resumed at step" in done.stderr
    assert "sha256 differs" in done.stderr
    assert Checkpoint.load(folder / "checkpoint.json").weights == whole.weights
    assert not list(folder.glob("state-*"))


def test_resume_of_other_settings_and_of_a_finished_run(tmp_path: Path) -> None:
    flags = ("trainers", "simplecnn", "--artifacts", tmp_path, "--steps", 30, "--device", "cpu")
    first = succeed(*flags, "--resume")
    assert "nothing to resume" in first.stderr
    before = sha256(tmp_path / "simplecnn" / "checkpoint.json")
    assert "already finished" in succeed(*flags, "--resume").stderr
    assert sha256(tmp_path / "simplecnn" / "checkpoint.json") == before


def test_ctrl_c_leaves_nothing_broken(tmp_path: Path) -> None:
    folder = tmp_path / "simplecnn"
    command = [
        sys.executable, "-m", "trainers", "simplecnn", "--artifacts", str(tmp_path), "--epochs", "500",
        "--set", "save_every=10", "--device", "cpu",
    ]  # fmt: skip
    victim = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while victim.poll() is None and not list(folder.glob("state-*.json")):
        time.sleep(0.005)
    victim.send_signal(signal.SIGINT)
    assert "interrupted" in victim.communicate(timeout=240)[1].splitlines()[-1]
    assert victim.returncode == 130
    for state in folder.glob("state-*.json"):
        assert state.with_suffix(".safetensors").exists()
    assert not list(folder.glob(".*"))
    expect_refusal(*command[2:], "--seed", 5, "--resume", says="seed: 0, now 5")


def test_ctrl_c_saves_the_step_and_resuming_gives_the_same_bytes(tmp_path: Path) -> None:
    """With averaged weights, gradient accumulation, erasing and two image sizes: nothing of it may be lost."""
    flags = [
        "convnext", "--device", "cpu", "--batch-size", "4", "--set", "sizes=32:0.008,64:0.008", "--set", "ema=0.9",
        "--set", "blocks=1,1,1,1",
        "--set", "accumulate=2", "--set", "erase=0.5", "--set", "save_every=3", "--precision", "fp32",
    ]  # fmt: skip
    whole = succeed("trainers", *flags, "--artifacts", tmp_path / "whole")
    assert "images of 64 px" in whole.stderr
    folder = tmp_path / "cut" / "convnext"
    command = [sys.executable, "-m", "trainers", *flags, "--artifacts", str(tmp_path / "cut")]
    victim = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while victim.poll() is None and not list(folder.glob("state-*.json")):
        time.sleep(0.005)
    victim.send_signal(signal.SIGTERM)
    said = victim.communicate(timeout=480)[1]
    assert victim.returncode == 130, said
    assert "state saved" in said
    done = succeed(*command[2:], "--resume")
    assert "resumed at step" in done.stderr
    first, second = (Checkpoint.load(tmp_path / name / "convnext" / "checkpoint.json") for name in ("whole", "cut"))
    assert first.weights == second.weights
    assert [point.size for point in second.curve] == [32, 64]
    assert first.input_shape == (3, 64, 64)
    assert load_model(second, folder)


def test_an_interrupted_test_costs_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainers import __main__ as command
    from trainers import train

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    flags = ("--steps", "3", "--artifacts", str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(train, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            command.run(command.parser().parse_args(["simplecnn", "--device", "cpu", *flags]))
    assert (tmp_path / "simplecnn" / "state-00000003.json").is_file(), "the last step is saved before it is tested"
    done = succeed("trainers", "simplecnn", "--device", "cpu", *flags, "--resume")
    assert "resumed at step 3" in done.stderr
    found = Checkpoint.load(tmp_path / "simplecnn" / "checkpoint.json")
    assert [point.step for point in found.curve] == [3]
    assert found.metrics is not None and found.metrics.train_loss == found.curve[0].train_loss > 0


def test_accumulation_is_the_same_step_in_parts(tmp_path: Path) -> None:
    flags = ("--steps", 5, "--precision", "fp32", "--set", "optimizer=sgd")
    whole = load_model(trained(tmp_path / "a", *flags), tmp_path / "a" / "simplecnn")
    parts = load_model(trained(tmp_path / "b", *flags, "--set", "accumulate=4"), tmp_path / "b" / "simplecnn")
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("setting", ["init=kaiming", "init=xavier", "init=trunc_normal", "clip_value=0.01", "ema=0.5"])
def test_settings_of_the_recipe_change_the_weights(tmp_path: Path, setting: str) -> None:
    plain = trained(tmp_path / "plain", "--steps", 3)
    other = trained(tmp_path / "other", "--steps", 3, "--set", setting)
    assert plain.weights.sha256 != other.weights.sha256


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_loss_that_is_no_number_names_step_parameter_and_remedy(tmp_path: Path, optimizer: str) -> None:
    """The first step multiplies its weights beyond measure, so the second fails, long before the loss is read."""
    flags = ("--set", "lr=1e30", "--set", f"optimizer={optimizer}", "--epochs", 1, "--precision", "fp32")
    done = run("trainers", "simplecnn", "--artifacts", tmp_path, "--device", "cpu", *flags)
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith("FAILED: the loss is not finite at step 2: the largest gradient before it was ")
    assert re.search(r"was (conv|linear|fc|head)\S*\.(weight|bias)'s \(\d", said), said
    assert said.endswith("train again with --set lr=1e+29, or --set clip_norm=1")
    assert not (tmp_path / "simplecnn" / "checkpoint.json").exists()


def test_the_failed_step_is_exact_and_leaves_the_weights_alone() -> None:
    """One image of the fourth step is no number; the guard freezes what the third step left."""
    recipe, images = Recipe(lr=0.1, optimizer="sgd"), torch.randn(6, 8, 1, 4, 4)
    images[3, 5] = torch.nan
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    learner = Learner(module, recipe, torch.device("cpu"), (1, 4, 4))
    kept: dict[str, torch.Tensor] = {}
    for number, batch in enumerate(images, 1):
        learner.step(batch, torch.arange(8) % 3, 0.1)
        if number == 3:
            kept = {name: tensor.clone() for name, tensor in learner.state().items()}
    assert all(torch.equal(tensor, kept[name]) for name, tensor in learner.state().items())
    said = explain(learner.guard, learner.plain, learner.optimizer, recipe, 6)
    moments = [learner.optimizer.state[part]["momentum_buffer"].abs().max() for part in module.parameters()]
    name = ("1.weight", "1.bias")[int(torch.stack(moments).argmax())]
    assert f"at step 4: the largest gradient before it was {name}'s" in said


@pytest.mark.parametrize(
    ("broken", "says"), [("weight", "1.weight is not finite to begin"), ("image", "at the images")]
)
def test_a_start_that_is_no_number_is_told_from_the_images(broken: str, says: str) -> None:
    recipe, images = Recipe(), torch.randn(2, 8, 1, 4, 4)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    with torch.no_grad():
        (module[1].weight if broken == "weight" else images).view(-1)[0] = torch.nan
    learner = Learner(module, recipe, torch.device("cpu"), (1, 4, 4))
    for batch in images:
        learner.step(batch, torch.arange(8) % 3, 0.1)
    said = explain(learner.guard, learner.plain, learner.optimizer, recipe, 2)
    assert "not finite at step 1: " in said
    assert says in said


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("simplecn",), "did you mean simplecnn?"),
        (("simplecnn", "--set", "lr"), "not key=value"),
        (("simplecnn", "--set", "lr=fast"), "Expected `float`"),
        (("simplecnn", "--set", "learning_rate=1"), "unknown setting"),
        (("simplecnn", "--epochs", "0"), "not above 0"),
        (("simplecnn", "--epochs", "1", "--steps", "1"), "not allowed with"),
        (("simplecnn", "--epochs", "1", "--set", "epochs=2"), "give it once"),
        (("simplecnn", "--data", "no/such/folder"), "no/such/folder"),
        (("convnext", "--set", "size=50"), "multiples of 32"),
        (("convnext", "--set", "sizes=64:"), "not size:epochs"),
        (("convnext", "--set", "sizes=64:1", "--epochs", "1"), "leave out epochs"),
        (("simplecnn", "--set", "sizes=28:1"), "images of one size"),
        (("simplecnn", "--set", "accumulate=3"), "equal parts"),
        (("simplecnn", "--recipe", "slow"), "unknown recipe"),
        (("simplecnn", "--name", "///"), "no usable folder name"),
    ],
)
def test_bad_input_gets_one_line(tmp_path: Path, flags: tuple[str, ...], says: str) -> None:
    expect_refusal("trainers", *flags, "--artifacts", tmp_path / "out", says=says)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_a_file_gets_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    expect_refusal("trainers", "simplecnn", "--steps", 1, "--artifacts", tmp_path / "file", says="Not a directory")
    assert (tmp_path / "file").read_text() == "mine"


def test_cuda_that_is_not_there_is_said(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA GPU")
    expect_refusal("trainers", "simplecnn", "--device", "cuda", "--artifacts", tmp_path, says="no CUDA GPU")


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    record = trained(tmp_path, "--steps", 2)
    weights = tmp_path / "simplecnn" / "checkpoint.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # one bit of one weight
    weights.write_bytes(content)
    with pytest.raises(UserError, match="sha256 differs"):
        load_model(record, weights.parent)


def test_the_learning_rate_rises_and_falls_to_zero() -> None:
    recipe = Recipe(lr=1.0, warmup=0.25)
    rates = [learning_rate(recipe, step, 100) for step in range(100)]
    assert np.argmax(rates) in (24, 25)
    assert max(rates) == 1.0
    assert rates[0] == pytest.approx(0.04)
    assert rates[-1] < 0.001


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "onecycle"])
def test_every_schedule_peaks_where_it_should(schedule: str) -> None:
    recipe = Recipe(lr=1.0, warmup=0.25, schedule=schedule)
    rates = np.array([learning_rate(recipe, step, 100) for step in range(100)])
    assert rates.max() == pytest.approx(1.0, abs=1e-9)
    assert np.all(np.diff(rates[:25]) > 0)
    assert rates[0] < 0.05
    assert rates[-1] == 1.0 if schedule == "constant" else rates[-1] < 0.02
    if schedule == "onecycle":
        module = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
        theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=101, pct_start=26 / 101)
        expected = []
        for _ in range(100):
            expected.append(theirs.get_last_lr()[0])
            optimizer.step()
            theirs.step()
        np.testing.assert_allclose(rates, expected, atol=0.02)


def test_norms_and_biases_are_not_decayed() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.LayerNorm([4, 8, 8]), torch.nn.BatchNorm2d(4))
    decayed, spared = make_optimizer(module, Recipe()).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3, 3, 3)]
    assert len(spared["params"]) == 5
    assert spared["weight_decay"] == 0


def test_preprocessing_is_what_it_says() -> None:
    images = torch.randint(256, (2, 20, 30, 3), dtype=torch.uint8)
    same = Preprocess(size=(20, 20), resize=20, mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))
    expected = images[:, :, 5:25].permute(0, 3, 1, 2) / 255
    expected = (expected - torch.tensor([0.5, 0.25, 0]).view(3, 1, 1)) / torch.tensor([0.5, 1, 2]).view(3, 1, 1)
    torch.testing.assert_close(prepare(images, same), expected)
    tall = Preprocess(size=(40, 20), resize=20, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert prepare(images, tall).shape == (2, 3, 40, 20), "scaled until it covers what is cut out"
    larger = Preprocess(size=(40, 40), resize=40, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert prepare(images, larger).shape == (2, 3, 40, 40)


def test_augmentation_moves_each_image_by_its_own_draw() -> None:
    images = torch.arange(8 * 8, dtype=torch.uint8).view(1, 8, 8, 1).expand(64, 8, 8, 1).contiguous()
    generator = torch.Generator().manual_seed(0)
    moved = augment(images, Recipe(crop=2, flip=True), generator)
    assert moved.shape == images.shape
    assert len({bytes(image.numpy()) for image in moved}) > 20
    assert torch.equal(augment(images, Recipe(), generator), images)


def test_erasing_blanks_a_rectangle_in_some_images() -> None:
    images = torch.full((400, 20, 20, 3), 7, dtype=torch.uint8)
    blanked = augment(images, Recipe(erase=0.5), torch.Generator().manual_seed(0)) != 7
    assert torch.equal(blanked[..., 0], blanked[..., 2])
    shares = blanked[..., 0].float().mean((1, 2))
    assert 0.4 < (shares > 0).float().mean() < 0.6
    assert shares.max() < 0.4
    for mask in blanked[..., 0]:
        assert mask.sum() == mask.any(1).sum() * mask.any(0).sum()

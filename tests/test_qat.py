"""Quantization-aware training by its commands: a checkpoint of its own, its export, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import expect_refusal, run, succeed
from safetensors.torch import load_file, save_file
from torch import nn

from export.artifact import Artifact
from export.exporters import Request, write_onnx
from export.parity import session
from trainers import qat
from trainers.checkpoint import Checkpoint, load_model, origin
from trainers.manifest import File, UserError, sha256
from trainers.optim import make_optimizer
from trainers.spec import FakeQuantization, Recipe

STEM = "simplecnn-dynamo-exact-int8-qat-tensorrt"
FLAGS = ("--qat", "--device", "cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """artifacts/ with a simplecnn and the same, fine-tuned for int8."""
    folder = tmp_path_factory.mktemp("artifacts")
    succeed("trainers", "simplecnn", "--steps", 60, "--device", "cpu", "--artifacts", folder)
    before = sha256(folder / "simplecnn" / "checkpoint.safetensors")
    succeed("trainers", "simplecnn", *FLAGS, "--steps", 30, "--artifacts", folder)
    assert sorted(path.name for path in (folder / "simplecnn").iterdir()) == [
        "checkpoint.json", "checkpoint.safetensors"
    ]  # fmt: skip
    assert sha256(folder / "simplecnn" / "checkpoint.safetensors") == before
    return folder


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """The artifacts once more, to be damaged."""
    shutil.copytree(trained, tmp_path / "artifacts")
    return tmp_path / "artifacts"


def test_the_record_says_how_and_from_what(trained: Path) -> None:
    folder = trained / "simplecnn-qat"
    plain = Checkpoint.load(trained / "simplecnn" / "checkpoint.json")
    record = Checkpoint.load(folder / "checkpoint.json")
    assert record.qat is not None
    assert record.qat.origin == plain.weights.sha256 == origin(record, folder).weights.sha256
    assert record.qat.settings == FakeQuantization()
    assert record.environment.packages["torchao"]
    assert (record.recipe.lr, record.steps) == (plain.recipe.lr / 10, 30)
    assert (record.preprocess, record.classes, record.data) == (plain.preprocess, plain.classes, plain.data)
    assert record.parameters == plain.parameters
    assert record.metrics.top1 > plain.metrics.top1 - 2
    scales = {name: value for name, value in load_file(folder / record.files[0].path).items() if "scale" in name}
    assert sorted(value.numel() for value in scales.values()) == [1, 1, 10, 32]  # two inputs, two weights by channel
    assert all((value > 0).all() for value in scales.values())


def test_the_module_rebuilt_gives_the_accuracy_recorded(trained: Path) -> None:
    from trainers.batches import evaluation_batches
    from trainers.evaluate import evaluate
    from trainers.open import reopen

    record = Checkpoint.load(trained / "simplecnn-qat" / "checkpoint.json")
    module = load_model(record, trained / "simplecnn-qat")
    split = reopen(record.data, shape=record.input_shape, num_classes=10).splits["test"]
    cpu = torch.device("cpu")
    score = evaluate(module, evaluation_batches(split, record.preprocess, 128, cpu), cpu, "fp32")
    assert score.images == record.metrics.images
    assert score.top1 == pytest.approx(record.metrics.top1, abs=0.11)  # one image, should a sum end otherwise
    assert score.loss == pytest.approx(record.metrics.loss)


@pytest.fixture(scope="module")
def exported(trained: Path) -> Artifact:
    done = succeed("export", "simplecnn-qat", "--verify-images", 200, "--artifacts", trained, "--json")
    (document,) = json.loads(done.stdout)["artifacts"]
    assert document["files"][0]["path"] == f"{STEM}.onnx"
    return Artifact.load(trained / "simplecnn-qat" / f"{STEM}.json")


def test_the_export_is_the_fake_quantized_module_in_integers(trained: Path, exported: Artifact) -> None:
    parity = exported.parity
    assert parity.passed
    assert (exported.variant.precision, exported.variant.target) == ("int8-qat", "tensorrt")
    assert parity.max_abs_err < 0.01 * parity.logit_scale
    assert parity.batches == (1, 32)
    assert exported.attested == {"Conv": {"int8": 1}, "Gemm": {"int8": 1}}
    assert exported.inputs[0].shape[0] is None
    assert exported.file.bytes < 0.3 * (trained / "simplecnn" / "checkpoint.safetensors").stat().st_size


@pytest.mark.slow
def test_the_drop_is_counted_from_the_fp32_checkpoint(trained: Path, exported: Artifact) -> None:
    done = succeed("export", "simplecnn", "--verify-images", 200, "--artifacts", trained, "--json")
    fp32 = json.loads(done.stdout)["artifacts"][0]["parity"]
    assert exported.parity.checkpoint_accuracy == fp32["accuracy"]
    assert exported.parity.drop == pytest.approx(fp32["accuracy"] - exported.parity.accuracy)


@pytest.mark.slow
def test_onnxruntime_is_timed_and_checked_against_the_fake_quantized_module(trained: Path, exported: Artifact) -> None:
    done = succeed(
        "runtime", "bench", "simplecnn-qat", "--artifacts", trained, "--backends", "onnxruntime", "--batch", "1,4",
        "--rounds", 3, "--processes", 1, "--seconds", 0.1, "--threads", 1, "--json",
    )  # fmt: skip
    rows = json.loads(done.stdout)["measurements"]
    assert [(row["cell"]["artifact"], row["cell"]["batch"], row["error"]) for row in rows] == [
        (STEM, 1, None), (STEM, 4, None)
    ]  # fmt: skip
    assert all(row["check"]["reason"] == "" and row["check"]["cosine"] > 0.9999 for row in rows)
    logits = load_file(trained / "simplecnn-qat" / "reference.safetensors")["logits"]
    images = load_file(trained / "simplecnn-qat" / "reference.safetensors")["images"]
    module = load_model(Checkpoint.load(trained / "simplecnn-qat" / "checkpoint.json"), trained / "simplecnn-qat")
    with torch.inference_mode():  # sums in another order may move a value over an edge of rounding
        torch.testing.assert_close(module(images), logits, rtol=1e-2, atol=1e-2 * float(logits.std()))


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    flags = [*FLAGS, "--steps", "40", "--set", "save_every=8", "--set", "freeze_ranges=0.5", "--artifacts"]
    for name in ("whole", "cut"):
        shutil.copytree(trained / "simplecnn", tmp_path / name / "simplecnn")
    succeed("trainers", "simplecnn", *flags, tmp_path / "whole")
    command = [sys.executable, "-m", "trainers", "simplecnn", *flags, str(tmp_path / "cut")]
    folder = tmp_path / "cut" / "simplecnn-qat"
    victim = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while victim.poll() is None and not (folder / "state-00000008.json").exists():
        time.sleep(0.005)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    assert not (folder / "checkpoint.json").exists()
    expect_refusal(*command[2:], "--resume", "--set", "averaging=0.5", says="qat settings")
    assert "resumed at step" in succeed(*command[2:], "--resume").stderr
    weights = [sha256(tmp_path / name / "simplecnn-qat" / "checkpoint.safetensors") for name in ("whole", "cut")]
    assert weights[0] == weights[1]
    assert "already finished" in succeed(*command[2:], "--resume").stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("trainers", "resnet18", *FLAGS), "python -m trainers resnet18"),
        (("trainers", "simplecnn-qat", *FLAGS), "name the fp32 one"),
        (("trainers", "simplecnn", *FLAGS, "--name", "simplecnn"), "give another name"),
        (("trainers", "simplecnn", *FLAGS, "--precision", "bf16"), "precision=fp32, not bf16"),
        (("trainers", "simplecnn", *FLAGS, "--set", "width=16"), "width=32; leave it out"),
        (("trainers", "simplecnn", *FLAGS, "--set", "averaging=0"), "Expected `float` > 0"),
        (("trainers", "simplecnn", *FLAGS, "--set", "averagin=0.1"), "did you mean averaging?"),
        (("trainers", "simplecnn", *FLAGS, "--recipe", "fast"), "leave --recipe out"),
        (("export", "resnet18-qat"), "python -m trainers resnet18 --qat"),
        (("export", "simplecnn-qat", "--quantize", "fp16"), "leave --quantize out"),
        (("export", "simplecnn-qat", "--exporter", "eager"), "leave --exporter out"),
        (("export", "simplecnn-qat", "--target", "cpu"), "leave --target out"),
        (("export", "simplecnn-qat", "--all"), "leave --all out"),
        (("export", "simplecnn", "--quantize", "int8-qat"), "python -m trainers NAME --qat"),
    ],
)
def test_what_cannot_be_had_gets_one_line(trained: Path, arguments: tuple[str, ...], says: str) -> None:
    before = sorted(trained.rglob("*"))
    expect_refusal(*arguments, "--artifacts", trained, says=says)
    assert sorted(trained.rglob("*")) == before


def test_images_of_other_classes_are_refused(trained: Path, tmp_path: Path) -> None:
    from PIL import Image

    for name in ("cats", "dogs"):
        (tmp_path / "pets" / "train" / name).mkdir(parents=True)
        for index in range(5):
            Image.new("L", (28, 28), 40 * index).save(tmp_path / "pets" / "train" / name / f"{index}.png")
    flags = (*FLAGS, "--data", tmp_path / "pets", "--artifacts", trained, "--name", "pets")
    expect_refusal("trainers", "simplecnn", *flags, says="same classes")
    assert not (trained / "pets").exists()


def test_a_changed_record_is_refused(copy: Path) -> None:
    path = copy / "simplecnn-qat" / "checkpoint.json"
    whole = json.loads(path.read_text())
    for changes, says in (
        ({"settings": {"quantizer": "symmetric-int4"}}, "Invalid enum value 'symmetric-int4'"),
        ({"settings": {"averaging": 2}}, "Expected `float` <= 1"),
        ({"settings": {"rounding": "up"}}, "unknown field `rounding`"),
    ):
        path.write_text(json.dumps(whole | {"qat": whole["qat"] | changes}))
        expect_refusal("export", "simplecnn-qat", "--artifacts", copy, says=says)
    path.write_text(json.dumps(whole | {"qat": None}))  # passed off as a plain checkpoint
    expect_refusal("export", "simplecnn-qat", "--artifacts", copy, says="does not fit simplecnn")


@pytest.mark.slow
@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_weights_that_do_not_fit_the_settings_are_refused(copy: Path, change: str) -> None:
    path = copy / "simplecnn-qat" / "checkpoint.safetensors"
    state = load_file(path)
    name = next(name for name, value in state.items() if "scale" in name and value.numel() == 32)
    says = {"missing": "Missing key", "unexpected": "Unexpected key", "shape": "size mismatch"}[change]
    scale = state.pop(name)
    if change != "missing":
        state |= {"unexpected": {name: scale, f"{name}2": scale.clone()}, "shape": {name: scale[:16].clone()}}[change]
    save_file(state, path)
    document = json.loads(path.with_suffix(".json").read_text())
    document["files"] = [{"path": path.name, "sha256": File.of(path).sha256, "bytes": File.of(path).bytes}]
    path.with_suffix(".json").write_text(json.dumps(document))
    expect_refusal("export", "simplecnn-qat", "--artifacts", copy, says=says)


def test_without_its_origin_it_is_not_exported(copy: Path) -> None:
    (kept,) = (copy / "simplecnn-qat").glob("checkpoint-*.json")
    kept.unlink()
    expect_refusal("export", "simplecnn-qat", "--artifacts", copy, says=kept.name)


def test_without_torchao_it_says_what_to_install(trained: Path, tmp_path: Path) -> None:
    """A Python whose import system knows no torchao, as one without the extra."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'torchao':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name='torchao')\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    for command in (["trainers", "simplecnn", *FLAGS, "--name", "other"], ["export", "simplecnn-qat"]):
        done = subprocess.run(
            [sys.executable, "-m", *command, "--artifacts", str(trained), *(["--output", str(tmp_path / "out")] if
             command[0] == "export" else [])],
            capture_output=True, text=True, check=False, env=environment,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert done.stderr.strip().splitlines()[-1].endswith('needs torchao: pip install -e ".[qat]"'), done.stderr
        assert "Traceback" not in done.stderr
    assert not (trained / "other").exists()
    assert run("trainers", "--help").returncode == 0


class Normed(nn.Module):
    """Two convolutions with batch norms, one of them without a bias, a skip, dropout and a head."""

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, eps=eps)
        self.second, self.other = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8, eps=eps)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(images)).relu()
        x = (x + self.other(self.second(x))).relu()
        return self.head(self.drop(x.mean((2, 3))))


SHAPE = (3, 12, 12)


@pytest.fixture(scope="module")
def prepared() -> nn.Module:
    """A Normed after 20 steps, its ranges standing after 10 and its norms after 15."""
    torch.manual_seed(0)
    module = qat.prepare(Normed(), SHAPE, FakeQuantization(freeze_ranges=0.5, freeze_norms=0.75))
    optimizer = make_optimizer(module, Recipe(lr=1e-2))
    seen: dict[str, list[torch.Tensor]] = {"scale": [], "running_mean": []}
    for step in range(20):
        module.progress(step / 20)  # type: ignore[operator]
        nn.functional.cross_entropy(module(torch.randn(16, *SHAPE)), torch.randint(5, (16,))).backward()
        optimizer.step()
        optimizer.zero_grad()
        for kind, values in seen.items():
            parts = [value.flatten() for name, value in module.named_buffers() if name.endswith(kind)]
            values.append(torch.cat(parts).clone())
    for kind, end in (("scale", 10), ("running_mean", 15)):
        changed = [not torch.equal(a, b) for a, b in zip(seen[kind], seen[kind][1:], strict=False)]
        assert all(changed[: end - 1]), kind
        assert not any(changed[end - 1 :]), kind
    return module.eval()


def test_norms_fold_and_the_file_computes_what_was_trained(prepared: nn.Module, tmp_path: Path) -> None:
    images = torch.randn(9, *SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = prepared(images)
        assert torch.equal(prepared(images), expected)  # dropout is off, statistics stand
        again = qat.prepare(Normed(), SHAPE, FakeQuantization())
        again.load_state_dict(prepared.state_dict(), strict=True)
        converted = qat.convert(again)
        torch.testing.assert_close(converted(images), expected, atol=1e-5, rtol=0)
    path = tmp_path / "normed.onnx"
    write_onnx("dynamo", converted, path, Request(input_shape=SHAPE, batch=None, opset=20))
    import onnx

    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert operators.count("Conv") == 2
    assert "BatchNormalization" not in operators
    integers = [onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if t.data_type == t.INT8]
    assert min(array.min() for array in integers if array.ndim > 1) >= -127  # weights; TensorRT's kernels ask for it
    assert all((array == 0).all() for array in integers if array.ndim < 2)  # symmetric: every zero point is 0
    for batch in (1, 2, 9):
        logits = session(path).run(None, {"images": images[:batch].numpy()})[0]
        np.testing.assert_allclose(logits, expected[:batch].numpy(), atol=0.05 * float(expected.std()))


def test_norms_and_biases_of_the_traced_module_are_not_decayed(prepared: nn.Module) -> None:
    decayed, spared = make_optimizer(prepared, Recipe()).param_groups
    assert sorted(tuple(p.shape) for p in decayed["params"]) == [(5, 8), (8, 3, 3, 3), (8, 8, 3, 3)]
    assert len(spared["params"]) == 6


def test_fake_quantization_rounds_and_passes_the_gradient_inside_the_range() -> None:
    module = qat.prepare(nn.Sequential(nn.Flatten(), nn.Linear(3, 1, bias=False)), (3, 1, 1), FakeQuantization())
    module.load_state_dict({name: torch.ones_like(value) for name, value in module.state_dict().items()})
    module.eval()
    images = torch.tensor([[0.4, 0.6, -1.6], [126.7, 300, -300]]).reshape(2, 3, 1, 1).requires_grad_()
    logits = module(images)
    assert logits.flatten().tolist() == [0 + 1 - 2, 127 + 127 - 128]
    logits.sum().backward()
    assert images.grad is not None
    assert images.grad.flatten().tolist() == [1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (nn.Sequential(nn.Flatten(), nn.BatchNorm1d(432)), "nothing to quantize"),
        (Normed(eps=1e-3), "of eps 1e-05 only"),
    ],
)
def test_a_module_that_cannot_be_quantized_is_refused(module: nn.Module, says: str) -> None:
    with pytest.raises(UserError, match=says):
        qat.prepare(module, SHAPE, FakeQuantization())


def test_a_module_that_cannot_be_traced_is_refused() -> None:
    class Choosy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(432, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(images.flatten(1)) if images.sum() > 0 else images.flatten(1)[:, :2]

    with pytest.raises(UserError, match=r"cannot trace this model"):
        qat.prepare(Choosy(), SHAPE, FakeQuantization())

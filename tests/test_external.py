"""Models that are not in trainers/models, and weights to start from."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from commands import expect_refusal, succeed
from datasets import folder_files, write
from safetensors.torch import load_file, save_file
from torch import nn

from export.artifact import Artifact
from runtime.results import Report
from trainers import external, models, start, unpickle, weights
from trainers.checkpoint import Checkpoint, folder_name, load_model
from trainers.manifest import File, UserError
from trainers.spec import Recipe

NETS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes, input_shape, width=4):
        super().__init__()
        self.conv = nn.Conv2d(input_shape[0], width, 3, stride=4, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.fc = nn.LazyLinear(num_classes)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        return self.fc(x.view(x.shape[0], -1))  # what channels-last images would not allow


class Tied(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.second.weight = self.first.weight
        self.fc = nn.Linear(3, num_classes)

    def forward(self, x):
        return self.fc(self.second(self.first(x)).mean((2, 3)))


class TwoOutputs(Tied):
    def forward(self, x):
        return super().forward(x), x


class OneMoreInTraining(Tied):
    def forward(self, x):
        return (super().forward(x), x) if self.training else super().forward(x)


class Detached(Tied):
    def forward(self, x):
        return super().forward(x).detach()


class Map(Tied):
    def forward(self, x):
        return self.first(x)


def fixed():
    return Tied(7)


def ten():
    return Tied(10)


def empty(num_classes):
    return nn.AdaptiveAvgPool2d(1)


def number(num_classes):
    return num_classes


def needy(backbone):
    return backbone


def broken(num_classes):
    raise ValueError("no luck today")


def leaving():
    raise SystemExit(3)


def norm_of_one(num_classes):
    return nn.Sequential(nn.Conv2d(3, 4, 8), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4), nn.Flatten(),
                         nn.Linear(4, num_classes))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nets.py and pets/, images of two classes."""
    folder = write(tmp_path_factory.mktemp("place"), folder_files())
    (folder / "nets.py").write_text(NETS)
    return folder


def looked_at(text: str, classes: int | None = None, **settings: str) -> int | None:
    """What the command does with a model before it reads any data, on 3x16x16 images."""
    from dataclasses import replace

    name = external.allow(text)
    spec = models.get(name)
    spec = replace(spec, input_shape=(3, 16, 16), num_classes=classes)
    options, recipe = spec.configure(settings, spec.recipe("folder"))
    return start.try_out(name, spec, options, recipe, None)


@pytest.mark.slow
def test_a_model_of_ones_own_goes_all_the_way(place: Path, tmp_path: Path) -> None:
    flags = ("--data", place / "pets", "--input", "3x24x24", "--artifacts", tmp_path)
    done = succeed("trainers", "nets.py:Net", *flags, "--steps", 2, "--set", "width=3", "--batch-size", 4, cwd=place)
    assert "nets.py:Net on folder" in done.stderr
    record = Checkpoint.load(tmp_path / "Net" / "checkpoint.json")
    assert (record.model, record.options, record.input_shape) == ("nets.py:Net", {"width": 3}, (3, 24, 24))
    assert record.classes == ("cat", "dog")
    assert str(place / "nets.py") not in (tmp_path / "Net" / "checkpoint.json").read_text()

    elsewhere = tmp_path  # where there is no nets.py
    expect_refusal("export", "Net", "--artifacts", tmp_path, cwd=elsewhere, says="--model PATH/nets.py:Net")
    flags = ("--artifacts", tmp_path, "--verify-images", 6)
    expect_refusal(
        "export", "Net", *flags, "--model", place / "nets.py:Tied", cwd=elsewhere, says="is a nets.py:Net, not a"
    )
    succeed("export", "Net", *flags, "--model", f"{place}/nets.py:Net", cwd=elsewhere)
    assert (tmp_path / "Net" / "Net-dynamo-exact-fp32.onnx").is_file()

    short = ("--artifacts", tmp_path, "--seconds", 0.1, "--rounds", 1, "--backends", "eager,onnxruntime", "--json")
    rows = bench("Net", *short)
    assert "which a record never runs" in (rows["eager"].error or "")
    assert rows["onnxruntime"].valid
    rows = bench("Net", *short, "--model", place / "nets.py:Net")
    assert rows["eager"].valid


@pytest.mark.slow
def test_a_changed_file_is_exported_anew(tmp_path: Path) -> None:
    """The same weights in another `forward`: their hash tells nothing of it."""
    (tmp_path / "nets.py").write_text(NETS)
    command = ("export", "nets.py:Tied", "--weights", "random", "--input", "3x16x16", "--verify-images", 6,
               "--exporter", "dynamo", "--artifacts", tmp_path)  # fmt: skip
    succeed(*command, cwd=tmp_path)
    first = Artifact.load(tmp_path / "Tied" / "Tied-dynamo-exact-fp32.json")
    (tmp_path / "nets.py").write_text(NETS.replace(".mean((2, 3))", ".amax((2, 3))"))
    succeed(*command, cwd=tmp_path)
    second = Artifact.load(tmp_path / "Tied" / "Tied-dynamo-exact-fp32.json")
    assert second.parents == first.parents
    assert second.parity.passed
    assert second.file.sha256 != first.file.sha256
    succeed(*command, cwd=tmp_path)
    assert Artifact.load(tmp_path / "Tied" / "Tied-dynamo-exact-fp32.json") == second, "and not again"


def bench(*arguments: object) -> dict[str, object]:
    document = json.loads(succeed("runtime", "bench", *arguments).stdout)
    document.pop("schema")
    return {row.cell.backend: row for row in msgspec.convert(document, Report).measurements}


@pytest.mark.slow
def test_a_torchvision_model_goes_all_the_way(place: Path, tmp_path: Path) -> None:
    flags = ("--artifacts", tmp_path)
    succeed(
        "trainers", "torchvision:squeezenet1_1", "--data", place / "pets", "--input", "3x64x64", "--steps", 2, *flags
    )
    folder = tmp_path / "torchvision-squeezenet1_1"
    assert Checkpoint.load(folder / "checkpoint.json").model == "torchvision:squeezenet1_1"
    succeed("export", "torchvision:squeezenet1_1", "--verify-images", 6, *flags)  # needs no --model
    assert len(list(folder.glob("torchvision-squeezenet1_1-*-exact-fp32.onnx"))) == 1


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
def test_a_timm_model_is_built_for_its_input() -> None:
    spec = models.get("timm:vit_tiny_patch16_224")
    assert spec.input_shape == (3, 224, 224)
    with torch.no_grad():
        assert spec.build(num_classes=3, input_shape=(1, 32, 32))(torch.zeros(2, 1, 32, 32)).shape == (2, 3)
    with pytest.raises(UserError, match="timm has no image classifier 'hf-hub:someone/thing'"):
        models.get("timm:hf-hub:someone/thing")


def test_without_timm_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install timm"):
        models.get("timm:resnet18")


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("torchvision:mobilenet_v3_small", "torchvision-mobilenet_v3_small"),
        ("nets.py:make", "make"),
        ("/some/where/nets.py:make", "make"),
        ("timm:resnet18.a1_in1k", "timm-resnet18.a1_in1k"),
    ],
)
def test_folders_have_safe_names(name: str, folder: str) -> None:
    assert folder_name(name) == folder


def test_a_record_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that names a file beside it, or by its whole path, gets nothing run."""
    proof = tmp_path / "proof"
    (tmp_path / "evil.py").write_text(f"import pathlib\npathlib.Path({str(proof)!r}).touch()\n")
    monkeypatch.chdir(tmp_path)
    for name in ("evil.py:make", f"{tmp_path}/evil.py:make", "evil:make", "os:system", "timm:evil.py:make"):
        with pytest.raises(UserError):
            models.get(name)
    assert not proof.exists()
    with pytest.raises(UserError, match="defines no function or class"):
        models.get(external.allow("evil.py:make"))
    assert proof.exists()


def test_a_factory_may_have_a_number_of_logits_of_its_own(place: Path) -> None:
    assert looked_at(f"{place}/nets.py:fixed") == 7
    assert looked_at(f"{place}/nets.py:Net") is None
    with pytest.raises(UserError, match="gives 7 logits where 3 are asked for"):
        looked_at(f"{place}/nets.py:fixed", classes=3)


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("TwoOutputs", "in testing gives 2 outputs"),
        ("OneMoreInTraining", "in training gives 2 outputs"),
        ("Detached", "do not depend on its parameters"),
        ("Map", "gives \\(2, 3, 16, 16\\) float32 for 2 images"),
        ("empty", "no parameters to train"),
        ("number", "makes a int, not a torch.nn.Module"),
        ("needy", "needs 'backbone'"),
        ("broken", "ValueError: no luck today \\(nets.py, line \\d+\\)"),
        ("leaving", "SystemExit: 3"),
        ("Nett", "has no 'Nett'; it has Net, Tied"),
    ],
)
def test_a_model_that_cannot_be_trained_is_one_line(place: Path, factory: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        looked_at(f"{place}/nets.py:{factory}")
    assert "\n" not in str(caught.value)


def test_a_batch_of_one_is_refused_where_a_norm_cannot_take_it(place: Path) -> None:
    assert looked_at(f"{place}/nets.py:norm_of_one") is None
    with pytest.raises(UserError, match=r"Expected more than 1 value per channel.*batch size"):
        looked_at(f"{place}/nets.py:norm_of_one", batch_size="1")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("missing.py:make",), "missing.py: no such file"),
        (("nets.py",), "write nets.py:NAME"),
        (("torchvision:resnet17",), "did you mean resnet18"),
        (("torchvision:squeezenet1_1", "--input", "1x64x64"), "to have 3 channels"),
        (("torchvision:googlenet", "--input", "3x64x64"), "in training gives 3 outputs"),
        (("nets.py:ten", "--input", "3x24x24", "--data", "pets"), "gives 10 logits and the data have 2 classes"),
        (("nets.py:Net", "--input", "3x24x24", "--data", "pets", "--classes", "1"), "has 2 classes and the model 1"),
        (("convnext", "--input", "3x64x64"), "--set size=S"),
        (("simplecnn", "--input", "3x64"), "--input"),
    ],
)
@pytest.mark.slow
def test_the_command_refuses_in_one_line(place: Path, arguments: tuple[str, ...], says: str) -> None:
    expect_refusal("trainers", *arguments, cwd=place, says=says)


def test_tied_weights_are_trained_and_written(place: Path, tmp_path: Path) -> None:
    from trainers.checkpoint import write_weights
    from trainers.optim import make_optimizer

    external.allow(f"{place}/nets.py:Tied")
    module = models.get("nets.py:Tied").build(num_classes=2, input_shape=(3, 8, 8))
    groups = make_optimizer(module, Recipe()).param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(module.parameters()))
    write_weights(module.state_dict(), tmp_path / "tied.safetensors")
    assert set(load_file(tmp_path / "tied.safetensors")) == set(module.state_dict())


# --- weights to start from


class Evil:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.proof}",)


def net(classes: int = 3) -> nn.Module:
    torch.manual_seed(classes)
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 2, 3), norm=nn.BatchNorm2d(2), flat=nn.Flatten(),
                                     fc=nn.Linear(8, classes)))  # fmt: skip


def held(tensors: dict[str, torch.Tensor], path: Path) -> weights.Weights:
    return weights.Weights(File(path=path.name, sha256="", bytes=0), tensors)


WRAPPINGS: list[Callable[[dict[str, torch.Tensor]], object]] = [
    lambda state: state,
    lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}},
    lambda state: {"model": {"state_dict": state}},
    lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    lambda state: {"model": {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()}},
    lambda state: {f"module.{name}": tensor for name, tensor in state.items()} | {"n_averaged": torch.tensor(3)},
    lambda state: {name: tensor.half() for name, tensor in state.items() if "num_batches" not in name},
]


@pytest.mark.parametrize("wrap", WRAPPINGS)
def test_usual_forms_of_a_state_dict_are_read(
    tmp_path: Path, wrap: Callable[[dict[str, torch.Tensor]], object], capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, ours = net(), net(4)
    ours.fc = nn.Linear(8, 3)
    torch.save(wrap(theirs.state_dict()), tmp_path / "their.pt")
    unpickle.convert(tmp_path / "their.pt", tmp_path / "their.safetensors")
    held(load_file(tmp_path / "their.safetensors"), tmp_path / "their.pt").fit(ours, 3)
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, theirs.state_dict()[name], rtol=1e-2, atol=1e-3, check_dtype=False)
    renamed = any(name.startswith(("module.", "_orig_mod.")) for name in load_file(tmp_path / "their.safetensors"))
    assert ("names are taken without" in capsys.readouterr().err) == renamed


def test_only_a_head_for_another_number_of_classes_starts_fresh(capsys: pytest.CaptureFixture[str]) -> None:
    theirs, ours = net(5), net(3)
    before = ours.fc.weight.clone()
    held(theirs.state_dict(), Path("their.pt")).fit(ours, 3)
    assert "note: their.pt was made for 5 classes: fc starts fresh" in capsys.readouterr().err
    assert torch.equal(ours.fc.weight, before)
    assert torch.equal(ours.conv.weight, theirs.conv.weight)


def test_a_mismatch_says_counts_and_first_names() -> None:
    state = net().state_dict()
    state["old.weight"] = state.pop("conv.weight")
    state["norm.weight"] = torch.ones(9)
    with pytest.raises(UserError) as caught:
        held(state, Path("their.pt")).fit(net(), 3)
    assert "7 of 9 tensors match" in str(caught.value)
    for part in (
        "1 missing (conv.weight)",
        "1 unexpected (old.weight)",
        "of another shape (norm.weight 9 instead of 2)",
    ):
        assert part in str(caught.value)


def endless() -> dict[str, object]:
    found: dict[str, object] = {}
    found["model"] = found
    return found


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "module": (lambda path: torch.save(net(), path), "holds Python objects .*never run; save the weights alone"),
    "code": (lambda path: torch.save({"w": Evil(path.with_name("proof"))}, path), "posix.system.*never run"),
    "raw": (
        lambda path: path.write_bytes(pickle.dumps(Evil(path.with_name("proof")))),
        "not a PyTorch file of weights",
    ),
    "bomb": (lambda path: torch.save({"w": torch.zeros(1).expand(10**12)}, path), "more than the file holds"),
    "meta": (lambda path: torch.save({"w": torch.zeros(3, device="meta")}, path), "layout meta"),
    "number": (lambda path: torch.save({"w": torch.zeros(3), "epoch": 3}, path), "'epoch' is a value of type int"),
    "nothing": (lambda path: torch.save({}, path), "not a state dict"),
    "tensor": (lambda path: torch.save(torch.zeros(3), path), "a value of type Tensor, not a state dict"),
    "itself": (lambda path: torch.save(endless(), path), "a mapping of model, not a state dict"),
    "others": (lambda path: torch.save({"a": 1, "b": 2}, path), "a mapping of a, b"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_reader_refuses_what_is_not_weights(tmp_path: Path, case: str) -> None:
    path = tmp_path / "weights.pt"
    make, says = REFUSED[case]
    make(path)
    with pytest.raises(UserError, match=says):
        unpickle.convert(path, tmp_path / "weights.safetensors")
    assert sorted(tmp_path.iterdir()) == [path]  # nothing was written, nothing was run


def test_sparse_tensors_are_refused(tmp_path: Path) -> None:
    """In a process of its own, as the product reads: this kind warns."""
    torch.save({"w": torch.eye(3).to_sparse()}, tmp_path / "sparse.pt")
    with pytest.raises(UserError, match="layout sparse_coo, not a dense one"):
        weights.read(tmp_path / "sparse.pt")


@pytest.mark.parametrize("content", [b"", b"these are not weights\n" * 20, "half"])
def test_files_that_are_no_weights_are_refused(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, str):
        torch.save(net().state_dict(), path)
        content = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"weights.pth: it is not a PyTorch file of weights"):
        weights.read(path)
    renamed = path.rename(path.with_suffix(".safetensors"))
    with pytest.raises(UserError, match="not a safetensors file, or truncated"):
        weights.read(renamed)


def test_a_file_that_unpacks_without_end_meets_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two gigabytes of tensors that share four megabytes of file."""
    block = torch.zeros(1_000_000)
    torch.save({f"w{index}": block for index in range(600)}, tmp_path / "many.pt")
    monkeypatch.setattr(weights, "OWN_MEMORY", 1_000_000_000)
    with pytest.raises(UserError, match="more memory than its size allows"):
        weights.read(tmp_path / "many.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    save_file({"fc.weight": torch.tensor([1.0, value])}, tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match=r"fc\.weight holds NaN or infinity"):
        weights.read(tmp_path / "bad.safetensors")


@pytest.mark.slow
def test_training_starts_from_weights_and_says_so(tmp_path: Path) -> None:
    flags = ("--artifacts", tmp_path, "--steps", 1, "--set", "lr=1e-9", "--set", "save_every=1")
    succeed("trainers", "simplecnn", *flags, "--name", "first", "--seed", 5)
    first = Checkpoint.load(tmp_path / "first" / "checkpoint.json")
    state = load_file(tmp_path / "first" / "checkpoint.safetensors")
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "first.pth")

    done = succeed("trainers", "simplecnn", *flags, "--name", "second", "--weights", tmp_path / "first.pth")
    assert "the weights are its 'state_dict'" in done.stderr
    assert "names are taken without 'module.'" in done.stderr
    second = Checkpoint.load(tmp_path / "second" / "checkpoint.json")
    assert second.started_from == File.of(tmp_path / "first.pth")
    old, new = load_model(first, tmp_path / "first"), load_model(second, tmp_path / "second")
    torch.testing.assert_close(new.state_dict(), old.state_dict(), rtol=0, atol=1e-6)

    done = succeed("trainers", "simplecnn", *flags, "--name", "second", "--resume", "--weights", tmp_path / "first.pth")
    assert "already finished" in done.stderr
    torch.save({"fc": Evil(tmp_path / "proof")}, tmp_path / "evil.pt")
    expect_refusal("trainers", "simplecnn", "--weights", tmp_path / "evil.pt", says="never run")
    assert not (tmp_path / "proof").exists()
    expect_refusal("trainers", "simplecnn", "--weights", tmp_path / "first.pth", "--set", "init=xavier", says="exclude")
    expect_refusal(
        "trainers", "simplecnn", "--weights", tmp_path / "first.pth", "--set", "width=5", says="1 of 4 tensors match"
    )


def test_a_run_from_other_weights_is_not_resumed(tmp_path: Path) -> None:
    """The state of an interrupted run names its weights, its input and its classes."""
    from trainers import train
    from trainers.open import open_dataset

    spec = models.get("simplecnn")
    data = open_dataset("synthetic", shape=(1, 28, 28), num_classes=10)
    recipe = Recipe(steps=2, batch_size=8)
    job = train.Job(model="simplecnn", options={"width": 2}, recipe=recipe, input_shape=(1, 28, 28))
    cpu = torch.device("cpu")
    started = train.Run(job, spec, data, cpu, tmp_path)
    started.step, started.seen = 1, 8
    started._save()

    other = weights.Weights(File(path="w.pt", sha256="a" * 64, bytes=1), {})
    changed = msgspec.structs.replace(job, started_from=other.file)
    with pytest.raises(UserError, match=f"weights: None, now {'a' * 12}"):
        train.train(changed, spec, data, cpu, tmp_path, resume=True)
    with pytest.raises(UserError, match="classes: 10, now 12"):
        train.train(job, spec, data.widened(12), cpu, tmp_path, resume=True)
    with pytest.raises(UserError, match=r"input: \(1, 28, 28\), now \(1, 20, 20\)"):
        train.train(msgspec.structs.replace(job, input_shape=(1, 20, 20)), spec, data, cpu, tmp_path, resume=True)
    assert train.train(job, spec, data, cpu, tmp_path, resume=True).steps == 2

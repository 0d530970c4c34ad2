"""Exporting by its own command: files, records, verification, reuse, bad input."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import expect_refusal, run, succeed

from export import parity
from export.activations import ACTIVATIONS, swap_gelu
from export.artifact import Artifact, find
from export.exporters import load_torch
from trainers.checkpoint import Checkpoint, load_model
from trainers.manifest import UserError

SMALL = ("--verify-images", 64, "--calibration-images", 32, "--target", "cpu")


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained simplecnn, and a ConvNeXt at 32 pixels with one block a stage."""
    folder = tmp_path_factory.mktemp("artifacts")
    common = ("--artifacts", folder, "--device", "cpu")
    succeed("trainers", "simplecnn", "--epochs", 1, *common)
    succeed("trainers", "convnext", "--steps", 6, "--batch-size", 16, "--set", "size=32",
            "--set", "blocks=1,1,1,1", *common)  # fmt: skip
    return folder


def exported(artifacts: Path, *arguments: object) -> dict[str, Artifact]:
    done = succeed("export", *SMALL, *arguments, "--artifacts", artifacts, "--json")
    documents = json.loads(done.stdout)["artifacts"]
    return {Path(d["files"][0]["path"]).stem: Artifact.load(record_path(artifacts, d)) for d in documents}


def record_path(artifacts: Path, document: dict) -> Path:
    return (artifacts / document["model"] / document["files"][0]["path"]).with_suffix(".json")


def test_quantize_leaves_baselines_int8_and_reference(artifacts: Path) -> None:
    made = exported(artifacts, "simplecnn", "--quantize")
    assert list(made) == ["simplecnn-torch-exact-fp32", "simplecnn-dynamo-exact-fp32", "simplecnn-dynamo-exact-int8"]
    folder = artifacts / "simplecnn"
    for name, record in made.items():
        path = record.file.verify(folder)
        assert path.stem == name
        assert record.parity.passed
        assert record.parity.images == 64
        assert record.reference.verify(folder).name == "reference.safetensors"
    int8 = made["simplecnn-dynamo-exact-int8"]
    assert int8.attested == {"Conv": {"int8": 1}, "Gemm": {"int8": 1}}
    assert int8.variant.calibration is not None
    assert int8.variant.calibration.images == 32
    assert int8.parity.batches == (1, 32)
    assert [p.role for p in int8.parents] == ["checkpoint", "fp32"]
    assert int8.parents[1].sha256 == made["simplecnn-dynamo-exact-fp32"].file.sha256
    assert int8.file.bytes < 0.3 * made["simplecnn-dynamo-exact-fp32"].file.bytes
    assert {found.name for found in find(folder)} == set(made)


def test_metadata_names_the_model_and_no_path_of_this_machine(artifacts: Path) -> None:
    exported(artifacts, "simplecnn", "--quantize")
    path = artifacts / "simplecnn" / "simplecnn-dynamo-exact-int8.onnx"
    model = onnx.load(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    record = Checkpoint.load(artifacts / "simplecnn" / "checkpoint.json")
    assert metadata["checkpoint_sha256"] == record.weights.sha256
    assert json.loads(metadata["classes"])[0] == record.classes[0]
    assert str(Path(__file__).parent.parent).encode() not in path.read_bytes()


@pytest.mark.slow
def test_all_makes_every_variant_of_a_convnext(artifacts: Path) -> None:
    done = run("export", "convnext", "--all", *SMALL, "--artifacts", artifacts, "--json")
    document = json.loads(done.stdout)
    made = {Path(d["files"][0]["path"]).stem: d for d in document["artifacts"]}
    assert done.returncode == 0, document["problems"]
    assert len(made) == 18 + (importlib.util.find_spec("nncf") is not None)
    assert f"{len(made)} artifacts, about" in done.stderr
    gelu_ops = {}
    for gelu in ACTIVATIONS:
        model = onnx.load(artifacts / "convnext" / f"convnext-dynamo-{gelu}-fp32.onnx")
        gelu_ops[gelu] = sum(node.op_type == "Gelu" for node in model.graph.node)
    assert gelu_ops == {"exact": 4, "tanh": 4, "sigmoid": 0, "hardswish": 0, "relu": 0}
    assert made["convnext-dynamo-exact-int8"]["attested"]["Conv"] == {"float": 16, "int8": 12}
    assert made["convnext-dynamo-exact-fp16"]["attested"]["Conv"] == {"float16": 16}


def test_what_lies_between_is_verified_on_the_reference_images(artifacts: Path) -> None:
    succeed("export", "convnext", "--quantize", "--target", "cpu", "--calibration-images", 32, "--verify-images", 100,
            "--artifacts", artifacts)  # fmt: skip
    found = {item.name.removeprefix("convnext-dynamo-exact-"): item.record for item in find(artifacts / "convnext")}
    images = {name: record.parity.images for name, record in found.items() if record}
    assert (images["fp32"], images["fp32-rewritten"], images["int8"]) == (100, 64, 100)


def test_what_lies_between_is_never_verified_on_fewer_images_than_before(artifacts: Path, tmp_path: Path) -> None:
    shutil.copytree(artifacts / "convnext", tmp_path / "convnext", ignore=shutil.ignore_patterns("convnext-*"))
    path = tmp_path / "convnext" / "convnext-dynamo-exact-fp32-rewritten.onnx"
    command = ("export", "convnext", "--target", "cpu", "--calibration-images", 32, "--artifacts", tmp_path)
    succeed(*command, "--rewrite", "all")
    first = Artifact.load(path.with_suffix(".json"))
    assert first.parity.images == 128
    succeed(*command, "--quantize", "int8", "--verify-images", "all")
    assert Artifact.load(path.with_suffix(".json")) == first
    path.write_bytes(path.read_bytes()[:-1])
    path.with_name("convnext-dynamo-exact-int8.onnx").unlink()
    succeed(*command, "--quantize", "int8")
    again = Artifact.load(path.with_suffix(".json"))
    assert again != first
    assert (again.file, again.parity.images) == (first.file, 128)


def test_asking_again_makes_nothing_anew(artifacts: Path) -> None:
    first = exported(artifacts, "simplecnn", "--quantize", "fp16")
    again = exported(artifacts, "simplecnn", "--quantize", "fp16")
    assert first == again
    damaged = artifacts / "simplecnn" / "simplecnn-dynamo-exact-fp16.onnx"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    third = exported(artifacts, "simplecnn", "--quantize", "fp16")
    name = "simplecnn-dynamo-exact-fp16"
    assert third[name].file.sha256 == first[name].file.sha256
    assert third[name] != first[name], "made anew: it took another time"


def test_numbers_need_fewer_images_than_accuracy(artifacts: Path, tmp_path: Path) -> None:
    shutil.copytree(artifacts / "simplecnn", tmp_path / "simplecnn", ignore=shutil.ignore_patterns("*.onnx", "logits"))
    arguments = ("export", "simplecnn", "--quantize", "--target", "cpu", "--artifacts", tmp_path, "--json")
    made = {d["variant"]["precision"]: d["parity"] for d in json.loads(succeed(*arguments).stdout)["artifacts"][1:]}
    assert {precision: parity["images"] for precision, parity in made.items()} == {"fp32": 128, "int8": 1000}
    assert made["fp32"]["passed"]
    whole = json.loads(succeed(*arguments, "--verify-images", 1000).stdout)["artifacts"]
    assert {d["parity"]["images"] for d in whole} == {1000}
    again = json.loads(succeed(*arguments).stdout)["artifacts"]
    assert again == whole  # more than enough


def test_what_was_judged_on_all_images_is_not_judged_on_fewer(artifacts: Path) -> None:
    whole = exported(artifacts, "simplecnn", "--verify-images", "all")
    again = exported(artifacts, "simplecnn")  # on 64
    assert {record.parity.images for record in again.values()} == {record.parity.images for record in whole.values()}
    assert {record.parity.images for record in again.values()} != {64}


@pytest.mark.parametrize("exporter", ["dynamo", "eager"])
def test_a_fixed_batch_is_verified_at_that_batch(artifacts: Path, exporter: str) -> None:
    made = exported(artifacts, "simplecnn", "--exporter", exporter, "--batch", 3)
    record = made[f"simplecnn-{exporter}-exact-fp32-b3"]
    assert record.inputs[0].shape == (3, 1, 28, 28)
    assert record.parity.batches == (3,)


def test_the_torch_artifact_is_a_module(artifacts: Path) -> None:
    exported(artifacts, "convnext", "--exporter", "torch", "--gelu", "relu")
    folder = artifacts / "convnext"
    found = {item.name: item for item in find(folder)}
    module = load_torch(found["convnext-torch-relu-fp32"])
    assert not any(type(part).__name__ == "GELU" for part in module.modules())
    weights = load_model(Checkpoint.load(folder / "checkpoint.json"), folder).state_dict()
    assert all((weights[name] == tensor).all() for name, tensor in module.state_dict().items())


def test_a_file_beyond_its_tolerance_fails_and_is_set_apart(artifacts: Path, tmp_path: Path) -> None:
    """Calibrated on images of another world, int8 clips what it should pass on: a real failure, not a staged one."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in range(10):
            folder = tmp_path / "dark" / split / f"class {label}"
            folder.mkdir(parents=True)
            for index in range(4):
                pixels = rng.integers(0, 3, (28, 28), dtype=np.uint8) if split == "train" else rng.integers(
                    0, 255, (28, 28), dtype=np.uint8
                )  # fmt: skip
                Image.fromarray(pixels).save(folder / f"{index}.png")
    shutil.copytree(artifacts / "simplecnn", tmp_path / "out" / "simplecnn")
    done = run(
        "export", "simplecnn", "--quantize", "--target", "cpu", "--calibration-data", tmp_path / "dark",
        "--artifacts", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert done.stdout.strip().splitlines()[-1].startswith("FAILED: 1 of 3")
    failed = tmp_path / "out" / "simplecnn" / "failed" / "simplecnn-dynamo-exact-int8.onnx"
    assert failed.is_file()
    assert not Artifact.load(failed.with_suffix(".json")).parity.passed
    names = {found.name for found in find(tmp_path / "out" / "simplecnn")}
    assert "simplecnn-dynamo-exact-int8" not in names


def test_calibration_images_of_one_colour_are_refused(artifacts: Path, tmp_path: Path) -> None:
    from PIL import Image

    for label in range(10):
        folder = tmp_path / "grey" / "train" / f"class {label}"
        folder.mkdir(parents=True)
        for index in range(3):
            Image.new("L", (28, 28), 128).save(folder / f"{index}.png")
    expect_refusal(
        "export", "simplecnn", "--quantize", "--calibration-data", tmp_path / "grey", "--artifacts", artifacts,
        "--output", tmp_path / "out", says="all one colour",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--quantize", "simplecnn"), "python -m export simplecnn --quantize"),
        ((), "name a model"),
        (("simplecn",), "did you mean simplecnn?"),
        (("resnet18",), "python -m trainers resnet18"),
        (("simplecnn", "--gelu", "tanh"), "no GELU"),
        (("simplecnn", "--quantize", "int4"), "unknown precision"),
        (("simplecnn", "--quantize", "int8,int9"), "did you mean int8?"),
        (("simplecnn", "--exporter", "torch", "--quantize"), "choose dynamo or eager"),
        (("simplecnn", "--opset", "5"), "invalid choice"),
        (("simplecnn", "--batch", "0"), "positive number"),
        (("simplecnn", "--calibration-data", "no/such"), "no/such"),
        (("simplecnn", "--checkpoint", "no/such.safetensors"), "python -m trainers simplecnn"),
    ],
)
def test_bad_input_gets_one_line(artifacts: Path, arguments: tuple[str, ...], says: str) -> None:
    before = sorted(path.name for path in (artifacts / "simplecnn").iterdir())
    expect_refusal("export", *arguments, "--artifacts", artifacts, says=says)
    assert sorted(path.name for path in (artifacts / "simplecnn").iterdir()) == before


def test_swapping_gelu_in_a_model_without_one_is_an_error() -> None:
    import torch

    with pytest.raises(UserError, match="no GELU"):
        swap_gelu(torch.nn.Sequential(torch.nn.ReLU()), "tanh")


def test_gelu_approximations_are_as_close_as_published() -> None:
    """Largest distance from GELU over [-8, 8], against figures worked out from the formulas."""
    import torch

    x = torch.linspace(-8, 8, 100_001, dtype=torch.float64)
    exact = ACTIVATIONS["exact"]()(x)
    errors = {name: float((make()(x) - exact).abs().max()) for name, make in ACTIVATIONS.items()}
    expected = {"exact": 0, "tanh": 4.7e-4, "sigmoid": 0.0203, "hardswish": 0.30, "relu": 0.17}
    for name, value in expected.items():
        assert errors[name] == pytest.approx(value, rel=0.05), name


def test_what_onnxruntime_refuses_is_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"cannot load broken\.onnx"):
        parity.session(broken)

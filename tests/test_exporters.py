"""Exporters: which one is taken, what each can write, and files of every kind that they make."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from checkpoints import random_checkpoint
from commands import succeed
from torch import nn

from export import candidates, exporters, functions, graph, parity, training
from export.artifact import SAME, Artifact
from export.choice import Candidate, choose
from export.exporters import Request, write_onnx
from export.job import Job, recorded_choice
from export.pipeline import export
from export.reproduce import compare
from export.variant import Variant
from trainers.checkpoint import Checkpoint
from trainers.manifest import UserError
from trainers.open import open_dataset

DYNAMO = Candidate(exporter="dynamo", reason="", nodes=10, operators={"Conv": 10}, bytes=1000, max_error=1e-6)
EAGER = msgspec.structs.replace(DYNAMO, exporter="eager")
SHAPE = (3, 8, 8)


def job(folder: Path, model: str, *, reproduce: bool = False) -> Job:
    """A job on random weights; those that are there already are taken."""
    place = folder / model
    path = place / "checkpoint.json"
    checkpoint = Checkpoint.load(path) if path.is_file() else random_checkpoint(folder, model)
    data = open_dataset("synthetic", shape=checkpoint.input_shape, num_classes=len(checkpoint.classes))
    return Job(
        checkpoint=checkpoint, source=place, folder=place, data=data, calibration_images=32, verify_images=16,
        reproduce=reproduce,
    )  # fmt: skip


def network(*parts: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), *parts, nn.Flatten(), nn.Linear(144, 10)).eval()


def logits(path: Path, images: torch.Tensor) -> np.ndarray:
    loaded = parity.session(path)
    made: np.ndarray = loaded.run(None, {loaded.get_inputs()[0].name: images.numpy()})[0]
    return made


@pytest.mark.parametrize(
    ("changes", "chosen", "because"),
    [
        ({}, "dynamo", "PyTorch's default"),
        ({"max_error": 5e-5}, "dynamo", "PyTorch's default"),
        ({"nodes": 9, "max_error": 9e-5}, "eager", "it has 9 nodes, not 10"),
        ({"nodes": 9, "max_error": 1e-3}, "dynamo", "its error is 1.0e-06"),
        ({"bytes": 995}, "dynamo", "PyTorch's default"),
        ({"bytes": 900}, "eager", "smaller"),
        ({"nodes": 11, "bytes": 900}, "dynamo", "it has 10 nodes, not 11"),
        ({"reason": "no such operator"}, "dynamo", "eager is out: no such operator"),
    ],
)
def test_an_exporter_is_chosen_by_error_then_nodes_then_size(changes: dict, chosen: str, because: str) -> None:
    choice = choose([DYNAMO, msgspec.structs.replace(EAGER, **changes)], 64)
    assert choice.chosen == chosen
    assert because in choice.because


def test_where_no_exporter_works_both_reasons_are_told() -> None:
    out = [msgspec.structs.replace(one, reason=f"{one.exporter} broke") for one in (DYNAMO, EAGER)]
    with pytest.raises(UserError, match="dynamo broke; eager broke"):
        choose(out, 64)


def test_the_chosen_file_is_recorded_with_its_choice_and_not_exported_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = job(tmp_path, "simplecnn")
    variant = Variant()
    with contextlib.ExitStack() as stack:
        choice = candidates.settle(one, variant, stack)
        artifact = _taken(one, variant, monkeypatch)
    found = {c.exporter: (c.nodes, c.operators["Conv"], c.operators["Gemm"]) for c in choice.candidates}
    assert found == dict.fromkeys(("dynamo", "eager"), (4, 1, 1))
    assert choice.chosen == "dynamo"  # equal but for metadata
    assert artifact.choice == choice
    assert not artifact.parity.reason
    fresh = job(tmp_path, "simplecnn")
    assert recorded_choice(fresh, variant) == choice
    assert export(fresh, variant) == artifact


def _taken(one: Job, variant: Variant, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """The artifact, of the file that the comparison left."""
    monkeypatch.setattr("export.pipeline.write_onnx", lambda *_: pytest.fail("exported again"))
    return export(one, variant)


def test_a_model_that_one_exporter_cannot_write_goes_through_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Counting(nn.Module):
        """Takes its path by a value, which torch.export refuses and a trace does not see."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() != 0.5 else x + 1

    module = network(Counting())
    request = Request(input_shape=SHAPE, batch=None, opset=20)
    with pytest.raises(UserError, match="dynamo exporter cannot write"):
        write_onnx("dynamo", module, tmp_path / "d.onnx", request)
    assert capsys.readouterr().err == "", "the reason is in the error, and no graph beside it"
    write_onnx("eager", module, tmp_path / "e.onnx", request)
    images = torch.randn(3, *SHAPE)
    with torch.no_grad():
        np.testing.assert_allclose(logits(tmp_path / "e.onnx", images), module(images), atol=1e-5)


@pytest.mark.parametrize("exporter", exporters.EXPORTERS)
def test_attention_goes_through_both(tmp_path: Path, exporter: str) -> None:
    """In eval mode PyTorch calls one fused operator for it, which ONNX has not."""

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = x.flatten(2).transpose(1, 2)
            return self.attention(rows, rows, rows, need_weights=False)[0].reshape(-1, 4, 6, 6)

    module, before = network(Attending()), torch.backends.mha.get_fastpath_enabled()
    write_onnx(exporter, module, tmp_path / "m.onnx", Request(input_shape=SHAPE, batch=None, opset=20))
    assert torch.backends.mha.get_fastpath_enabled() == before
    images = torch.randn(3, *SHAPE)
    with torch.no_grad():
        np.testing.assert_allclose(logits(tmp_path / "m.onnx", images), module(images), atol=1e-5)


@pytest.mark.parametrize("exporter", ["eager", "dynamo"])
@pytest.mark.parametrize("opset", range(17, 24))
def test_a_file_has_the_opset_that_was_asked_for(tmp_path: Path, exporter: str, opset: int) -> None:
    module, path, images = network(nn.GELU()), tmp_path / "m.onnx", torch.randn(3, *SHAPE)
    write_onnx(exporter, module, path, Request(input_shape=SHAPE, batch=None, opset=opset))
    assert graph.opset(path) == opset
    onnx.checker.check_model(path, full_check=True)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert ("Gelu" in kinds) == (opset >= 20)
    with torch.no_grad():
        np.testing.assert_allclose(logits(path, images), module(images), atol=1e-5)


def test_an_opset_that_dynamo_does_not_reach_is_refused_in_one_line(tmp_path: Path) -> None:
    module = nn.Sequential(nn.LayerNorm([3, 8, 8]), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    request = Request(input_shape=SHAPE, batch=None, opset=17)
    write_onnx("eager", module, tmp_path / "e.onnx", request)
    with pytest.raises(UserError, match="wrote opset 18; try the other --exporter or --opset 18"):
        write_onnx("dynamo", module, tmp_path / "d.onnx", request)


def test_the_training_graph_has_dropout_and_batch_norm_as_training_sees_them(tmp_path: Path) -> None:
    module = network(nn.BatchNorm2d(4), nn.Dropout(0.5))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    exporters.write_training(module, tmp_path / "t.onnx", Request(input_shape=SHAPE, batch=None, opset=20))
    nodes = {node.op_type: node for node in onnx.load(tmp_path / "t.onnx").graph.node}
    assert {a.name: a.i for a in nodes["BatchNormalization"].attribute}["training_mode"] == 1
    assert len(nodes["Dropout"].input) == 3  # data, ratio and training mode
    assert not module.training
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_a_training_graph_is_no_artifact(tmp_path: Path) -> None:
    one = job(tmp_path, "simplecnn")
    path = training.write(one, 20)
    assert path == tmp_path / "simplecnn" / "training" / "simplecnn-eager-training.onnx"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("exporter", ["eager", "dynamo"])
def test_activations_become_functions_that_compute_the_same(tmp_path: Path, exporter: str) -> None:
    class Swish(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * (1.5 * x).sigmoid()

    module = network(nn.Sequential(Swish(), nn.Conv2d(4, 4, 1), nn.GELU()), Swish())
    path, images = tmp_path / "m.onnx", torch.randn(3, *SHAPE)
    write_onnx(exporter, module, path, Request(input_shape=SHAPE, batch=None, opset=18))
    model, plain = onnx.load(path), logits(path, images)
    assert functions.outline(model, functions.activations(module)) == 3
    assert sorted(function.name for function in model.functions) == ["GELU", "Swish"]
    calls = [node.op_type for node in model.graph.node if node.domain == functions.DOMAIN]
    assert calls == ["Swish", "GELU", "Swish"]
    onnx.save(model, path)
    onnx.checker.check_model(path, full_check=True)
    np.testing.assert_array_equal(logits(path, images), plain)


def test_without_an_activation_to_keep_functions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="more than one operator"):
        export(job(tmp_path, "simplecnn"), Variant(exporter="eager", functions=True))


@pytest.mark.parametrize("exporter", ["eager", "dynamo"])
def test_weights_beyond_the_limit_lie_beside_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exporter: str
) -> None:
    monkeypatch.setattr(exporters, "LARGE", 10_000)
    artifact = export(job(tmp_path, "simplecnn"), Variant(exporter=exporter))
    folder = tmp_path / "simplecnn"
    assert [file.path.rpartition("fp32")[2] for file in artifact.files] == [".onnx", ".onnx.data"]
    assert artifact.files[1].bytes > 900_000 > 10_000 > artifact.files[0].bytes
    assert artifact.parity.passed
    again = Artifact.load(folder / f"{artifact.variant.name('simplecnn')}.json")
    for file in again.files:
        file.verify(folder)
    (folder / artifact.files[1].path).write_bytes(b"other")
    with pytest.raises(UserError, match="sha256 differs"):
        again.files[1].verify(folder)


@pytest.mark.parametrize("exporter", ["eager", "dynamo"])
def test_a_file_made_again_has_the_same_bytes(tmp_path: Path, exporter: str) -> None:
    artifact = export(job(tmp_path, "simplecnn", reproduce=True), Variant(exporter=exporter))
    assert artifact.reproduced == SAME


def test_weights_beside_a_graph_are_compared_too(tmp_path: Path) -> None:
    for name, weights in (("a", b"1"), ("b", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.xml").write_text("<net/>")
        (tmp_path / name / "m.bin").write_bytes(weights)
    assert compare(tmp_path / "a" / "m.xml", tmp_path / "b" / "m.xml") == "the weights differ"
    (tmp_path / "b" / "m.bin").write_bytes(b"1")
    assert compare(tmp_path / "a" / "m.xml", tmp_path / "b" / "m.xml") == SAME


def test_what_differs_between_two_files_is_named(tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "m.onnx", tmp_path / "b" / "m.onnx"
    module = network()
    for path in (first, second):
        path.parent.mkdir()
        write_onnx("eager", module, path, Request(input_shape=SHAPE, batch=None, opset=20))
    assert compare(first, second) == SAME
    model = onnx.load(second)
    model.graph.initializer[1].raw_data = bytes(len(model.graph.initializer[1].raw_data))
    onnx.save(model, second)
    name = model.graph.initializer[1].name
    assert compare(first, second) == f"differs in 1 of 4 initializers, first in {name!r}"


@pytest.mark.slow
def test_both_by_the_command(tmp_path: Path) -> None:
    random_checkpoint(tmp_path, "convnext", size=32, blocks="1,1,1,1")
    arguments = ("export", "convnext", "--exporter", "both", "--gelu", "sigmoid", "--functions", "--training",
                 "--reproduce", "--verify-images", 16, "--artifacts", tmp_path, "--json")  # fmt: skip
    done = succeed(*arguments)
    made = {d["files"][0]["path"]: d for d in json.loads(done.stdout)["artifacts"]}
    assert {"convnext-dynamo-sigmoid-fp32-functions.onnx", "convnext-eager-sigmoid-fp32-functions.onnx"} <= set(made)
    assert {d["reproduced"] for d in made.values()} == {SAME}
    assert "exporters on 64 images" in done.stderr
    record = Artifact.load(tmp_path / "convnext" / "convnext-eager-sigmoid-fp32.json")
    assert record.choice is not None
    assert record.choice.chosen == "dynamo"
    outlined = onnx.load(tmp_path / "convnext" / "convnext-eager-sigmoid-fp32-functions.onnx")
    assert [function.name for function in outlined.functions] == ["SigmoidGELU"]
    assert (tmp_path / "convnext" / "training" / "convnext-eager-training.onnx").is_file()
    again = succeed(*arguments)
    assert "comparing" not in again.stderr


@pytest.mark.slow
def test_the_survey_runs_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    command = [
        sys.executable, Path(__file__).parent.parent / "benchmarks" / "survey.py", "--size", "64", "--models",
        "squeezenet1_1,shufflenet_v2_x0_5", "--journal", tmp_path / "rows.jsonl",
        "--report", tmp_path / "page.md",
    ]  # fmt: skip
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "4 of 4 ok" in first.stdout
    assert "| torchvision | 2 | 2 | 2 | 2 | 2 |" in (tmp_path / "page.md").read_text()
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert all(row["error"] < 2e-3 and row["varies"] > 1e-3 and row["nodes"] > 40 for row in rows)
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines[:-1], lines[-1][:40]]))  # killed while it wrote
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "[1/1] torchvision:shufflenet_v2_x0_5 eager: ok" in again.stderr

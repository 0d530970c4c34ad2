"""GELU and what may stand in for it: the user's own, the two ways to swap, and the study of what it costs."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from checkpoints import random_checkpoint
from commands import expect_refusal, succeed
from torch import Tensor, nn

from export import activations, parity
from export.activations_graph import swap_in_graph
from export.exporters import Request, write_onnx
from export.study import latency
from export.study.engines import computed, without_activation
from export.study.record import Study
from export.study.seen import Histogram, together
from export.study.tuning import tuned
from export.variant import Variant
from trainers.checkpoint import Checkpoint
from trainers.manifest import UserError

OWN = """
import torch
from torch import nn

def soft(x):
    return x * (0.5 + 0.8 * x / torch.sqrt(1.5 + 2.56 * x * x))

class Leaky(nn.Module):
    def forward(self, x):
        return torch.where(x > 0, x, torch.tensor([0.1]) * x) * x.clamp(-1, 1)

class Learned(nn.PReLU):
    pass

class Plain:
    pass

def flat(x): return x.flatten()
def half(x): return x.half()
def root(x): return torch.sqrt(x)
def spread(x): return torch.softmax(x, 1)
def broken(x): return x + nothing
def number(x): return 1.0
def stepped(x): return torch.sign(x).detach()
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "acts.py"
    path.write_text(OWN)
    return path


class Places(nn.Module):
    """GELU after a convolution, after a linear layer on tokens, and one module in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.gelu = nn.GELU()
        self.conv, self.linear, self.again = nn.Conv2d(3, 4, 1), nn.Linear(4, 6), self.gelu
        self.head = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.gelu(self.conv(images)).flatten(2).transpose(1, 2)
        return self.head(self.again(self.linear(tokens))).mean(1)


def places() -> nn.Module:
    torch.manual_seed(0)
    return Places().eval()


def exported(path: Path, module: nn.Module, exporter: str, opset: int, size: int = 8) -> onnx.ModelProto:
    write_onnx(exporter, copy.deepcopy(module), path, Request(input_shape=(3, size, size), batch=None, opset=opset))
    return onnx.load(path)


def agree(path: Path, module: nn.Module, graph: onnx.ModelProto, name: str, size: int) -> int:
    """Swap in the graph and in the module; their outputs must be the same. Returns how many were swapped."""
    images = 4 * torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    swapped, count = swap_in_graph(graph, name)
    onnx.checker.check_model(swapped, full_check=True)
    onnx.save(swapped, path)
    with torch.no_grad():
        before, expected = module(images).numpy(), activations.swap_gelu(copy.deepcopy(module), name)(images).numpy()
    found = parity.session(path).run(None, {"images": images.numpy()})[0]
    assert np.abs(found - expected).max() < 1e-4 * max(1.0, float(np.abs(expected).max())), name
    assert np.abs(expected - before).max() > 1e-5, "the swap must show, or agreement means nothing"
    return count


@pytest.mark.parametrize("opset", [17, 20])
def test_graph_and_module_swaps_agree(tmp_path: Path, opset: int) -> None:
    module = places()
    graph = exported(tmp_path / "net.onnx", module, "eager", opset)
    assert agree(tmp_path / "swapped.onnx", module, graph, "sigmoid", 8) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("exporter", "opset"), [("eager", 17), ("eager", 20), ("dynamo", 18), ("dynamo", 20)])
def test_graph_and_module_swaps_agree_for_every_activation(
    tmp_path: Path, own: Path, exporter: str, opset: int
) -> None:
    module = places()
    graph = exported(tmp_path / "net.onnx", module, exporter, opset)
    mine = [activations.parse(f"{own}:{name}") for name in ("soft", "Leaky")]
    every = (exporter, opset) in (("eager", 17), ("dynamo", 20))  # GELU in parts and as one node; the others are alike
    for name in [*activations.ACTIVATIONS, *mine] if every else ["relu", mine[0]]:
        if name != "exact":
            assert agree(tmp_path / "swapped.onnx", module, graph, name, 8) == 2


@pytest.mark.slow
@pytest.mark.parametrize("model", ["convnext", "timm"])
def test_graph_and_module_swaps_agree_on_models(tmp_path: Path, own: Path, model: str) -> None:
    torch.manual_seed(0)
    if model == "timm":
        timm = pytest.importorskip("timm")
        module = timm.create_model("test_vit", num_classes=10, img_size=32).eval()
    else:
        from trainers.models.convnext import ConvNeXt

        module = ConvNeXt(num_classes=10, input_shape=(3, 32, 32), size=32, blocks="1,1,1,1").eval()
    gelus = sum(activations.is_gelu(part) for part in module.modules())
    assert gelus >= 2
    graph = exported(tmp_path / "net.onnx", module, "dynamo", 20, size=32)
    for name in ("relu", activations.parse(f"{own}:soft")):
        assert agree(tmp_path / "swapped.onnx", module, graph, name, 32) == gelus


def test_a_graph_without_exact_gelu_is_refused(tmp_path: Path) -> None:
    approximate = activations.swap_gelu(places(), "tanh")
    graph = exported(tmp_path / "net.onnx", approximate, "eager", 20)
    with pytest.raises(UserError, match="no exact GELU"):
        swap_in_graph(graph, "relu")
    assert swap_in_graph(graph, "exact") == (graph, 0)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("flat", r"turns \(2, 3, 4, 3\) float32 into \(72,\)"),
        ("half", "into .* float16"),
        ("root", "gives nan at x = -8"),
        ("spread", "neighbours"),
        ("broken", r"NameError.*acts\.py, line \d+"),
        ("number", "gives a float"),
        ("nowhere", "has no 'nowhere'; it has soft, Leaky"),
        ("Learned", "has parameters"),
        ("Plain", r"not a torch\.nn\.Module"),
    ],
)
def test_what_is_no_activation_is_refused(own: Path, name: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        activations.parse(f"{own}:{name}")
    assert "\n" not in str(caught.value)


def test_a_file_runs_only_where_it_is_named(own: Path) -> None:
    with pytest.raises(UserError, match=r"--model\) PATH/unnamed\.py:soft"):
        activations.make("unnamed.py:soft@12345678")
    with pytest.raises(UserError, match="which of its functions"):
        activations.parse(str(own))
    with pytest.raises(UserError, match="did you mean sigmoid"):
        activations.parse("sigmoyd")


def test_a_changed_file_is_another_variant(own: Path) -> None:
    first = activations.parse(f"{own}:soft")
    own.write_text(OWN.replace("1.5", "1.6"))
    second = activations.parse(f"{own}:soft")
    names = {Variant(gelu=gelu).name("m") for gelu in (first, second, activations.parse(f"{own}:Leaky"), "exact")}
    assert len(names) == 4
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyzL0123456789.-") for name in names)
    with pytest.raises(UserError, match="not as it was"):
        activations.make(first)


def test_every_place_of_a_shared_module_is_swapped() -> None:
    module = activations.swap_gelu(places(), "relu")
    assert not activations.has_gelu(module)
    assert isinstance(module.get_submodule("again"), nn.ReLU)


def test_the_histogram_counts_every_value_and_widens() -> None:
    values = [torch.randn(4096), 30 * torch.randn(4096), torch.tensor([-200.0, 0.5])]
    parts = [Histogram(), Histogram()]
    for place, each in enumerate(values):
        parts[place % 2].add(each)
    whole, everything = together(parts), torch.cat(values)
    layer = whole.layer("all")
    assert int(whole.counts.sum()) == layer.values == len(everything)
    assert (layer.low, layer.high) == (float(everything.min()), float(everything.max()))
    bin_width = 2 * whole.half / len(whole.counts)
    assert layer.percentiles[2] == pytest.approx(float(everything.median()), abs=2 * bin_width)
    with pytest.raises(UserError, match="not finite"):
        whole.add(torch.tensor([float("nan")]))


def test_engines_say_what_they_compute_in_gelus_place(tmp_path: Path) -> None:
    """ONNX Runtime fuses ReLU into a convolution, and has an operator of its own for GELU."""
    module = nn.Sequential(nn.Conv2d(3, 16, 3), nn.GELU(), nn.Conv2d(16, 4, 3)).eval()
    found = {}
    for name in ("exact", "relu"):
        path = tmp_path / f"{name}.onnx"
        exported(path, activations.swap_gelu(copy.deepcopy(module), name), "eager", 20)
        if name == "exact":
            assert without_activation(path, tmp_path / "bare.onnx") == 1
        found[name] = computed(path, tmp_path / "bare.onnx")
    assert found["exact"]["onnxruntime"] == "1 Gelu"
    assert found["relu"]["onnxruntime"] == "1 Conv+Relu"
    for engine in found["exact"].values():
        assert "Gelu" in engine


def test_latencies_are_those_of_the_newest_report_on_these_very_files(tmp_path: Path) -> None:
    folder = tmp_path / "reports"
    folder.mkdir()

    def report(sha: str, *rounds: float, batch: int = 1) -> str:
        cell = {"artifact": "m", "backend": "onnxruntime", "batch": batch, "threads": 2, "options": {}}
        row = {"cell": cell, "rounds_s": [list(rounds)], "error": None, "load_s": 1.0}
        return json.dumps({"schema": 1, "subjects": [{"name": "m", "sha256": sha}], "measurements": [row]})

    assert latency.read(tmp_path, {"m": "now"}) == (None, {})
    (folder / "2026-01-01-a.json").write_text(report("now", 0.001, 0.002, 0.009))
    (folder / "2026-01-02-a.json").write_text(report("older file", 0.5))
    (folder / "2026-01-03-a.json").write_text(report("now", 0.5, batch=8))
    (folder / "2026-01-04-a.json").write_text("{")
    assert latency.read(tmp_path, {"m": "now"}) == ("2026-01-01-a.json", {"m": {"onnxruntime": 2.0}})


def test_a_function_without_gradient_is_not_fine_tuned(own: Path) -> None:
    with pytest.raises(UserError, match="no finite gradient"):
        tuned(None, activations.parse(f"{own}:stepped"), 1, own.parent)  # type: ignore[arg-type]  # refused before


def test_bad_input_gets_one_line(tmp_path: Path) -> None:
    random_checkpoint(tmp_path, "simplecnn")
    expect_refusal("export.gelu", "simplecnn", "--artifacts", tmp_path, says="no GELU module")
    expect_refusal("export.gelu", "convnext", "--artifacts", tmp_path, says="python -m trainers convnext")


@pytest.mark.slow
def test_the_study_of_a_small_model(tmp_path: Path, own: Path) -> None:
    """The whole command twice: the second run only reads what the first computed."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def tiny(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(1, 8, 5, 2), nn.GELU(), nn.Conv2d(8, 8, 3), nn.GELU(),\n"
        "                         nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, num_classes))\n"
    )
    model, artifacts = f"{tmp_path / 'net.py'}:tiny", tmp_path / "artifacts"
    succeed("trainers", model, "--data", "synthetic:10", "--input", "1x28x28", "--steps", 20, "--artifacts", artifacts)
    ask = ("export.gelu", model, "--images", 200, "--gelu", f"relu,{own}:soft", "--finetune-steps", 5)
    first = json.loads(succeed(*ask, "--artifacts", artifacts, "--json").stdout)
    folder = artifacts / "tiny" / "gelu"
    study = Study.load(folder / "gelu.json")
    assert json.loads(json.dumps(study.to_document())) == first
    assert [row.name for row in study.rows] == ["exact", "relu", "acts.py:soft"]
    assert study.places == 2
    assert study.seen.whole.values == study.seen.images * 8 * (12 * 12 + 10 * 10)
    exact, relu, soft = study.rows
    assert (exact.max_error, exact.logit_max, exact.agreement, exact.before.drop) == (0, 0, 100, 0)
    assert relu.max_error <= 0.1701
    assert relu.mean_error < relu.max_error
    assert 0 < relu.logit_mean < relu.logit_max
    assert relu.engines["onnxruntime"] == "2 Conv+Relu"
    assert soft.nodes > exact.nodes
    assert all(row.after is not None for row in study.rows)
    judged = [Checkpoint.load(path).metrics for path in folder.glob("*/checkpoint.json")]
    assert [metrics.images for metrics in judged if metrics] == [200, 200, 200]
    files = {path: path.stat().st_mtime_ns for path in artifacts.rglob("*.safetensors")}
    succeed(*ask, "--artifacts", artifacts)
    assert {path: path.stat().st_mtime_ns for path in artifacts.rglob("*.safetensors")} == files
    assert (folder / "gelu.png").stat().st_size > 20_000
    assert "| acts.py:soft |" in (folder / "gelu.md").read_text()
    assert len((folder / "gelu.csv").read_text().splitlines()) == 4
    shutil.rmtree(folder)

"""Layers quantized alone, the search for an assignment, and their commands."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from checkpoints import random_checkpoint
from commands import expect_refusal, run, succeed

from export.artifact import Artifact
from export.costs import Costs, LayerCost
from export.parity import divergence
from export.precision import Conversion, convert, int8
from export.search.assign import assign, most_trials
from export.search.journal import Journal
from export.search.names import counterparts
from export.search.quantizer import Quantizer
from export.search.records import LayerDamage, Scores, Search, Sensitivity
from trainers.manifest import CheckFailed, environment, sha256

SMALL = ("--target", "cpu", "--calibration-images", 32, "--verify-images", 64)
FEW = ("--search-images", 64)

# A normalisation that the preparation fuses, a product and sum that become one Gemm, and a function that it inlines
# into nodes without names.
NET = """
<ir_version: 10, opset_import: ["" : 20]>
net (float[n, 3, 8, 8] images) => (float[n, 5] logits)
<float[8, 3, 3, 3] w1, float[8] one, float[8] shift, float[8, 8, 3, 3] w2, float[8, 1, 3, 3] deep, float[8, 5] w3,
 float[5] b3>
{
    [first] a = Conv <pads = [1, 1, 1, 1]> (images, w1)
    [norm] n1 = BatchNormalization (a, one, shift, shift, one)
    [relu] r = Relu (n1)
    [second] b = Conv <pads = [1, 1, 1, 1]> (r, w2)
    [swish] h = HardSwish (b)
    [depthwise] d = Conv <pads = [1, 1, 1, 1], group = 8> (h, deep)
    [sum] s = Add (d, r)
    [pool] p = GlobalAveragePool (s)
    [flat] f = Flatten (p)
    [product] m = MatMul (f, w3)
    [bias] logits = Add (m, b3)
}
"""
SHAPES = {"w1": (8, 3, 3, 3), "one": (8,), "shift": (8,), "w2": (8, 8, 3, 3), "deep": (8, 1, 3, 3), "w3": (8, 5),
          "b3": (5,)}  # fmt: skip


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, rng = onnx.parser.parse_model(NET), np.random.default_rng(0)
    for name, shape in SHAPES.items():
        values = rng.uniform(0.5, 1.5, shape) if name == "one" else rng.standard_normal(shape) / 3
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx.save(model, path)
    return path


def images() -> Iterator[np.ndarray]:
    rng = np.random.default_rng(1)
    return (rng.standard_normal((8, 3, 8, 8)).astype(np.float32) for _ in range(2))


def quantizer(net: Path, target: str) -> Quantizer:
    return Quantizer(net, Conversion(target=target, images=images))


@pytest.mark.parametrize("target", int8.PLACEMENTS)
def test_the_searched_graph_is_the_exported_one(net: Path, tmp_path: Path, target: str) -> None:
    made = quantizer(net, target)
    names = [layer.name for layer in made.layers]
    for kept in ((), (names[0],), tuple(names[1::2])):
        conversion = Conversion(target=target, images=images, kept=kept)
        convert("int8", net, tmp_path / "int8.onnx", conversion)
        written, searched = onnx.load(tmp_path / "int8.onnx").graph, made.model(kept).graph
        for field in ("node", "initializer"):
            texts = [sorted(item.SerializeToString() for item in getattr(g, field)) for g in (written, searched)]
            assert texts[0] == texts[1], (kept, field)
        integers = {node.name for node in searched.node if _is_integer(searched, node)}
        weighted = {layer.name for layer in made.layers if layer.operator in int8.MATRIX_OPS}
        assert integers == weighted - set(kept)


def _is_integer(graph: onnx.GraphProto, node: onnx.NodeProto) -> bool:
    """Whether the node multiplies by a weight that is stored as integers."""
    decoded = {name for other in graph.node if other.op_type == "DequantizeLinear" for name in other.output}
    return node.op_type in int8.MATRIX_OPS and node.input[1] in decoded


@pytest.mark.parametrize("target", int8.PLACEMENTS)
def test_one_layer_alone_has_the_only_integer_weight(net: Path, target: str) -> None:
    made = quantizer(net, target)
    weighted = [layer for layer in made.layers if layer.operator in int8.MATRIX_OPS]
    assert len(weighted) == 4
    for layer in weighted:
        graph = made.alone(layer).graph
        assert [node.name for node in graph.node if _is_integer(graph, node)] == [layer.name]


def test_layers_are_those_that_start_quantization(net: Path) -> None:
    """ReLU, Flatten and the like only pass integers on; they are no choice of their own."""
    operators = {layer.operator for layer in quantizer(net, "cpu").layers}
    assert {"Conv", "Gemm", "Add"} <= operators
    assert not {"Relu", "Flatten"} & operators
    assert {layer.operator for layer in quantizer(net, "tensorrt").layers} == {"Conv", "Gemm"}


def test_layers_are_named_as_in_the_fp32_file(net: Path, tmp_path: Path) -> None:
    prepared = onnx.load(int8.prepare(net, tmp_path)).graph
    assert len({node.name for node in prepared.node}) == len(prepared.node), "every node has a name of its own"
    origins = counterparts(prepared, onnx.load(net).graph)
    gemm = next(node.name for node in prepared.node if node.op_type == "Gemm")
    assert origins["first"] == "first" and origins["second"] == "second" and origins["depthwise"] == "depthwise"
    assert origins[gemm] == "product", "by its weight"
    inlined = next(node.name for node in prepared.node if node.op_type == "HardSigmoid")
    assert origins[inlined] is None


def test_a_kept_node_that_is_not_there_is_refused(net: Path, tmp_path: Path) -> None:
    conversion = Conversion(target="cpu", images=images, kept=("no such node",))
    with pytest.raises(CheckFailed, match="no such node"):
        convert("int8", net, tmp_path / "int8.onnx", conversion)


def test_divergence_is_torchs() -> None:
    import torch
    from torch.nn import functional

    rng = np.random.default_rng(0)
    p, q = rng.standard_normal((2, 6, 10)).astype(np.float32) * 3
    both = [torch.from_numpy(x).double().log_softmax(1) for x in (q, p)]
    expected = functional.kl_div(*both, reduction="batchmean", log_target=True)
    assert divergence(p, q) == pytest.approx(float(expected))
    assert divergence(p, p) == 0


def layer(name: str, kl: float, saved: float) -> LayerDamage:
    scores = Scores(kl=kl, cosine=1.0, disagreement=0.0, disagreement_interval=(0.0, 0.0))
    return LayerDamage(name=name, source=name, operator="Conv", weight="", scores=scores, saved=saved)


class Additive:
    """A model whose layers' damages add up; counts what is tried."""

    def __init__(self, layers: list[LayerDamage], budget: float) -> None:
        self.layers, self.budget, self.tried = layers, budget, set()

    def __call__(self, kept: frozenset[str]) -> bool:
        self.tried.add(kept)
        return self.damage(kept) <= self.budget

    def damage(self, kept: frozenset[str]) -> float:
        return sum(layer.scores.kl for layer in self.layers if layer.name not in kept)


def test_within_the_budget_everything_is_quantized_at_once() -> None:
    layers = [layer("a", 1, 1), layer("b", 2, 1)]
    fits = Additive(layers, 3)
    assert assign(layers, fits) == frozenset()
    assert len(fits.tried) == 1


def test_what_is_slower_in_int8_stays_in_float() -> None:
    layers = [layer("a", 0, -1), layer("b", 1, 1)]
    fits = Additive(layers, 10)
    assert assign(layers, fits) == {"a"}
    assert all("a" in kept for kept in fits.tried)


def test_layers_are_restored_by_damage_for_the_time_saved_and_put_back_where_there_is_room() -> None:
    """`dear` goes first, `big` second; without them there is room for `dear` again, which saves little but fits."""
    layers = [layer("dear", 2, 0.1), layer("big", 10, 1), layer("small", 1, 1)]
    assert assign(layers, Additive(layers, 3)) == {"big"}
    assert assign(layers, Additive(layers, 1)) == {"dear", "big"}
    assert assign(layers, Additive(layers, 0)) == {"dear", "big", "small"}


@pytest.mark.parametrize("seed", range(20))
def test_an_assignment_fits_and_nothing_can_be_put_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = [layer(str(i), float(rng.exponential()), float(rng.uniform(0, 2))) for i in range(40)]
    fits = Additive(layers, float(rng.uniform(0.1, 30)))
    kept = assign(layers, fits)
    assert fits.damage(kept) <= fits.budget
    assert len(fits.tried) <= most_trials(len(layers))
    room = fits.budget - fits.damage(kept)
    assert all(one.scores.kl > room for one in layers if one.name in kept)


def test_a_journal_keeps_what_was_measured_before_an_interruption(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "journal.jsonl"

    def open_journal() -> Journal[LayerDamage]:
        return Journal(path, LayerDamage, lambda entry: entry.name)

    def interrupted() -> LayerDamage:
        raise KeyboardInterrupt

    first = open_journal()
    first.get("a", lambda: layer("a", 1, 1))
    with pytest.raises(KeyboardInterrupt):
        first.get("b", interrupted)
    whole = path.read_bytes()
    path.write_bytes(whole + whole.strip()[:-5])  # killed while writing
    again = open_journal()
    assert again.get("a", interrupted).scores.kl == 1
    again.get("b", lambda: layer("b", 2, 1))
    assert set(open_journal().found) == {"a", "b"}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained simplecnn."""
    folder = tmp_path_factory.mktemp("artifacts")
    succeed("trainers", "simplecnn", "--epochs", 1, "--artifacts", folder, "--device", "cpu")
    return folder


def test_sensitivity_ranks_layers_and_leaves_record_table_and_chart(artifacts: Path) -> None:
    command = ("export.sensitivity", "simplecnn", *SMALL, "--artifacts", artifacts, "--json")
    first, again = (json.loads(succeed(*command).stdout) for _ in range(2))
    assert first == again, "what is measured is not measured again"
    (path,) = (artifacts / "simplecnn" / "sensitivity").glob("*.json")
    record = Sensitivity.load(path)
    assert {layer.operator for layer in record.layers} == {"Conv", "Gemm"}
    assert all(0 < layer.scores.kl < 0.1 and layer.estimated and layer.saved > 0 for layer in record.layers)
    assert record.layers[0].rate >= record.layers[1].rate
    assert (record.basis.split, record.basis.images) == ("val", 64)
    table = list(csv.DictReader(path.with_suffix(".csv").read_text().splitlines()))
    assert [row["layer"] for row in table] == [layer.name for layer in record.layers]
    assert float(table[0]["kl_nats"]) == record.layers[0].scores.kl
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def auto(artifacts: Path, model: str, *arguments: object) -> tuple[Artifact, Search]:
    """The searched artifact and the search's newest record."""
    done = succeed("export", model, "--quantize", "auto", *SMALL, *FEW, *arguments, "--artifacts", artifacts, "--json")
    document = json.loads(done.stdout)["artifacts"][-1]
    searches = sorted((artifacts / model / "search").glob("*.json"), key=lambda path: path.stat().st_mtime)
    return Artifact.load((artifacts / model / document["files"][0]["path"]).with_suffix(".json")), Search.load(
        searches[-1]
    )


def test_auto_within_its_budget_is_the_plain_int8_file(artifacts: Path) -> None:
    made, search = auto(artifacts, "simplecnn", "--max-drop", 5)
    assert made.file.path == "simplecnn-dynamo-exact-int8.onnx"
    assert (search.measure, search.kept, len(search.tried)) == ("accuracy", (), 1)
    assert search.chosen.scores.drop is not None and search.chosen.scores.drop <= 5
    _, again = auto(artifacts, "simplecnn", "--max-drop", 5)
    assert again == search, "a finished search is used again"


def test_auto_leaves_in_float_what_the_profiles_say_is_slower(artifacts: Path, tmp_path: Path) -> None:
    succeed("export", "simplecnn", "--quantize", *SMALL, "--artifacts", artifacts)
    folder, profiles = artifacts / "simplecnn", []
    for precision, seconds in (("fp32", 1e-3), ("int8", 2e-3)):
        rows = (
            LayerCost(name="node_linear", operator="Gemm", precision=precision, seconds=seconds),
            LayerCost(name="node_conv2d", operator="Conv", precision=precision, seconds=1e-6 / seconds),
        )
        file = folder / f"simplecnn-dynamo-exact-{precision}.onnx"
        profiles += ["--costs", tmp_path / f"{precision}.json"]
        Costs(sha256=sha256(file), engine="onnxruntime", device="cpu", threads=1, batch=1, layers=rows,
              environment=environment()).save(profiles[-1])  # fmt: skip
    made, search = auto(artifacts, "simplecnn", "--max-drop", 5, *profiles)
    assert made.variant.kept == search.kept == search.slower == ("node_linear",)
    assert made.file.path.startswith("simplecnn-dynamo-exact-int8-mixed-")
    assert made.attested == {"Conv": {"int8": 1}, "Gemm": {"float": 1}}
    assert search.chosen.seconds == pytest.approx(1e-3 + 0.5e-3)
    expect_refusal(
        "export.sensitivity", "simplecnn", *SMALL, "--costs", profiles[3], "--artifacts", artifacts,
        says="profile of another file",
    )  # fmt: skip


def test_auto_counts_agreement_where_accuracy_would_not_tell(tmp_path: Path) -> None:
    random_checkpoint(tmp_path, "simplecnn")
    made, search = auto(tmp_path, "simplecnn", "--max-drop", 100)
    assert search.measure == "agreement"
    assert search.lost(search.chosen)[0] == search.chosen.scores.disagreement
    assert made.variant.kept == ()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--quantize", "auto", "--max-drop", "-1"), "--max-drop"),
        (("--quantize", "auto", "--all"), "leave --all and --grid out"),
        (("--quantize", "--max-drop", 0.5), "for --quantize auto alone"),
        (("--quantize", "auto", "--costs", "no/such.json"), "no/such.json"),
        (("--quantize", "autp"), "did you mean auto?"),
    ],
)
def test_bad_input_gets_one_line(artifacts: Path, arguments: tuple[str, ...], says: str) -> None:
    expect_refusal("export", "simplecnn", *arguments, *SMALL, "--artifacts", artifacts, says=says)


@pytest.mark.slow
def test_a_tight_budget_keeps_layers_of_a_convnext_in_float(tmp_path: Path) -> None:
    """Random weights: the budget counts images whose top-1 changes, of which all-int8 has some."""
    random_checkpoint(tmp_path, "convnext", size=32, blocks="1,1,1,1")
    made, search = auto(tmp_path, "convnext", "--max-drop", 1, "--rewrite", "none")
    assert search.measure == "agreement"
    assert search.tried[0].kept == () and search.lost(search.tried[0])[0] > 1
    assert 0 < len(search.kept) < len(search.layers)
    assert search.lost(search.chosen)[0] <= 1
    assert made.variant.kept == search.kept
    kept = sum(layer.operator == "Conv" for layer in search.layers if layer.name in search.kept)
    assert made.attested["Conv"] == {"float": 4 + kept, "int8": 12 - kept}
    assert search.chosen.seconds is not None and search.tried[0].seconds is not None
    assert search.chosen.seconds > search.tried[0].seconds


@pytest.mark.slow
def test_an_interrupted_measurement_goes_on_where_it_stopped(tmp_path: Path) -> None:
    random_checkpoint(tmp_path, "resnet18")
    command = ("export.sensitivity", "resnet18", *SMALL, "--artifacts", tmp_path)
    child = subprocess.Popen([sys.executable, "-m", *map(str, command)], stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "resnet18" / "sensitivity"
    while child.poll() is None and not any(path.stat().st_size for path in folder.glob("*.jsonl")):
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=240)
    assert child.returncode == 130, errors
    (journal,) = folder.glob("*.jsonl")
    before = [line for line in journal.read_text().splitlines() if line]
    assert not list(folder.glob("*.json"))
    succeed(*command)
    after = [line for line in journal.read_text().splitlines() if line]
    assert 0 < len(before) < len(after) and after[: len(before)] == before
    record = Sensitivity.load(journal.with_suffix(".json"))
    assert len(after) == len(record.layers) == len({layer.name for layer in record.layers})


def test_the_help_of_both_commands_names_the_other() -> None:
    assert "--quantize auto" in run("export.sensitivity", "--help").stdout
    assert "--max-drop" in run("export", "--help").stdout

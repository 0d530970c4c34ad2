"""python -m export.diff: what corresponds, what changed, and what is no difference."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import exported_artifacts
import numpy as np
import onnx
import pytest
from commands import expect_refusal, run, succeed

from export.inspect.graphdiff import Diff, compare

FP32, INT8 = "simplecnn-dynamo-exact-fp32", "simplecnn-dynamo-exact-int8"
CHAIN = """
<ir_version: 10, opset_import: ["" : 20]>
chain (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y)
{
    [first] a = Conv <kernel_shape = [1, 1]> (x, w1)
    [act] b = Relu (a)
    [second] c = Conv (b, w2)
    [sum] y = Sub (c, x)
}
"""


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported_artifacts.make(tmp_path_factory.getbasetemp())


def save(path: Path, text: str = CHAIN, seed: int = 0) -> Path:
    """The chain, or something like it, with weights w1 and w2."""
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(seed)
    for name in ("w1", "w2"):
        values = random.normal(size=(4, 4, 1, 1)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, path)
    return path


def diff(folder: Path, text: str, seed: int = 0) -> Diff:
    return compare(save(folder / "a.onnx"), save(folder / "b.onnx", text, seed))


def changes(found: Diff) -> dict[str, tuple[str, ...]]:
    """What is said of each operation that is not the same, by its name before."""
    return {(row.before or row.after).name: (row.status, *row.changes) for row in found.rows if row.status != "same"}


def test_a_file_is_like_itself(artifacts: Path) -> None:
    done = succeed("export.diff", INT8, INT8, "--artifacts", artifacts, "--check", "--json")
    found = json.loads(done.stdout)
    assert not found["differs"]
    assert (found["nodes"], found["weights"], found["interface"]) == ([], [], [])
    assert found["same_nodes"] > 4
    assert "OK: the graphs are the same" in done.stderr


def test_int8_against_fp32(artifacts: Path, tmp_path: Path) -> None:
    page = tmp_path / "overlay.html"
    done = run("export.diff", FP32, INT8, "--artifacts", artifacts, "--check", "--json", "--html", page)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    added = [node["operator"] for node in found["nodes"] if node["status"] == "added"]
    assert added.count("QuantizeLinear") == added.count("DequantizeLinear") == 4
    conv = next(node for node in found["nodes"] if node["operator"] == "Conv")
    assert (conv["status"], conv["before"], conv["after"]) == ("changed", "node_conv2d", "node_conv2d")
    assert found["before"]["precision"]["Conv"] == {"float": 1}
    assert found["after"]["precision"]["Conv"] == {"int8": 1}
    weights = {weight["before"]: weight for weight in found["weights"]}
    # A symmetric step is the largest weight of a channel / 127; rounding moves a weight by half of it at most.
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor)
              for tensor in onnx.load(artifacts / "simplecnn" / f"{FP32}.onnx").graph.initializer}  # fmt: skip
    half = np.abs(stored["conv.weight"]).max() / 127 / 2
    assert 0 < weights["conv.weight"]["max_abs_difference"] <= 1.01 * half
    assert weights["conv.weight"]["dtype_after"] == "int8"

    tags = Tags()
    tags.feed(page.read_text())
    assert tags.open == []
    assert tags.classes >= {"added", "removed", "changed", "absent"}


class Tags(HTMLParser):
    """Open tags and the classes seen; a closing tag must close the last."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.classes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.classes |= {value for name, value in attrs if name == "class" and value}
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_names_and_defaults_are_no_difference(tmp_path: Path) -> None:
    text = CHAIN.replace("[act]", "[relu_7]").replace(
        "a = Conv <kernel_shape = [1, 1]>", "a = Conv <group = 1, strides = [1, 1]>"
    )
    found = diff(tmp_path, text)
    assert not found.differs
    assert [row.is_renamed for row in found.rows] == [False, True, False, False]


def test_an_attribute_and_an_operator(tmp_path: Path) -> None:
    text = CHAIN.replace("<kernel_shape = [1, 1]>", "<group = 2>").replace("[act] b = Relu", "[act] b = Sigmoid")
    assert changes(diff(tmp_path, text)) == {
        "first": ("changed", "group 1 → 2"), "act": ("changed", "operator Relu → Sigmoid"),
    }  # fmt: skip


def test_other_weights(tmp_path: Path) -> None:
    found = diff(tmp_path, CHAIN, seed=1)
    assert [row.status for row in found.rows] == ["changed", "same", "changed", "same"]
    before, after = (onnx.numpy_helper.to_array(onnx.load(tmp_path / f"{x}.onnx").graph.initializer[0]) for x in "ab")
    assert found.weights[0].max_abs_difference == pytest.approx(np.abs(before - after).max())
    assert found.summary()[1] == ("weights", "2 changed")


def test_inputs_in_another_order(tmp_path: Path) -> None:
    found = diff(tmp_path, CHAIN.replace("Sub (c, x)", "Sub (x, c)"))
    assert changes(found) == {
        "sum": ("changed", "input 0 from x, before from second", "input 1 from second, before from x"),
    }  # fmt: skip


def test_an_output_from_elsewhere(tmp_path: Path) -> None:
    text = CHAIN.replace("=> (float[N, 4, 8, 8] y)", "=> (float[N, 4, 8, 8] c)")
    found = diff(tmp_path, text)
    assert "output c comes from second, before from sum" in found.interface
    assert found.differs


def test_a_layer_taken_out_moves_its_weights(tmp_path: Path) -> None:
    """The second convolution now stands before the activation; the other is gone."""
    text = CHAIN.replace("[first] a = Conv <kernel_shape = [1, 1]> (x, w1)", "[first] a = Relu (x)").replace(
        "[act] b = Relu (a)", "[act] b = Sigmoid (a)"
    )
    found = diff(tmp_path, text)
    gone = next(
        row for row in found.rows if row.before is not None and row.before.operator == "Conv" and row.after is None
    )
    assert gone.weights[0].status == "removed"
    assert next(row for row in found.rows if row.before is not None and row.before.name == "second").status != "removed"


def test_opset_and_signature(tmp_path: Path) -> None:
    text = CHAIN.replace('"" : 20', '"" : 21').replace("float[N, 4, 8, 8] x", "float[N, 4, 16, 8] x")
    found = diff(tmp_path, text)
    assert "opset: ai.onnx 20 → ai.onnx 21" in found.interface
    assert any("16" in line for line in found.interface if line.startswith("inputs"))


def test_a_damaged_copy_is_located(artifacts: Path, tmp_path: Path) -> None:
    """What `check` can only call changed: here it is a weight, and how far it is from what it was."""
    path = tmp_path / "copy.onnx"
    shutil.copy(artifacts / "simplecnn" / f"{FP32}.onnx", path)
    model = onnx.load(path)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "fc.weight")
    place = path.read_bytes().index(tensor.raw_data) + 4 * 777 + 3  # the exponent of one weight
    content = bytearray(path.read_bytes())
    content[place] ^= 0x40
    path.write_bytes(content)
    found = compare(artifacts / "simplecnn" / f"{FP32}.onnx", path)
    assert [row.before.name for row in found.rows if row.status == "changed" and row.before] == ["node_linear"]
    assert [weight.before for weight in found.weights if weight.status == "changed"] == ["fc.weight"]


def test_names_are_escaped_in_the_overlay(tmp_path: Path) -> None:
    model = onnx.load(save(tmp_path / "a.onnx"))
    model.graph.node[0].name = "<script>alert(1)</script>[/]"
    onnx.save(model, tmp_path / "b.onnx")
    page = tmp_path / "page.html"
    done = succeed("export.diff", tmp_path / "a.onnx", tmp_path / "b.onnx", "--html", page)
    assert "1 operations" in done.stdout
    assert "<script>alert" not in page.read_text()


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    expect_refusal("export.diff", tmp_path / "bad.onnx", tmp_path / "bad.onnx", says="cannot be read as an ONNX model")
    expect_refusal("export.diff", "a", "b", "--artifacts", tmp_path, says="no file, model or artifact 'a'")

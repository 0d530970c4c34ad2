"""python -m export.ops: figures that are known, Q/DQ pairs, operators that are not known, profiles, bad input."""

from __future__ import annotations

import json
import struct
from html.parser import HTMLParser
from pathlib import Path

import exported_artifacts
import onnx
import pytest
import torch
from commands import expect_refusal, succeed
from msgspec.structs import replace

from export.artifact import Artifact
from export.costs import Costs, LayerCost
from export.exporters import Request, write_onnx
from export.inspect.inventory import take
from export.inspect.locate import plainness
from export.inspect.model import read
from trainers import models
from trainers.manifest import UserError, environment, sha256


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported_artifacts.make(tmp_path_factory.getbasetemp())


def document(*arguments: object) -> dict:
    return json.loads(succeed("export.ops", *arguments, "--json").stdout)


def save(path: Path, text: str, **weights: tuple[int, ...]) -> Path:
    model = onnx.parser.parse_model(text)
    for name, shape in weights.items():
        tensor = onnx.numpy_helper.from_array(torch.randn(shape).numpy(), name)
        model.graph.initializer.append(tensor)
    onnx.save(model, path)
    return path


def write(path: Path, module: torch.nn.Module, size: int) -> Path:
    write_onnx("eager", module.eval(), path, Request(input_shape=(3, size, size), batch=None, opset=20))
    return path


def test_a_models_name_means_its_plain_file_and_not_the_newest() -> None:
    made = Artifact.load(Path(__file__).parent / "golden" / "artifact-2.json")
    plain = replace(made, variant=replace(made.variant, gelu="exact", rewrites=()))
    newer = replace(made.environment, time="2999-01-01T00:00:00+00:00")
    others = [replace(plain, environment=newer, variant=replace(plain.variant, gelu="relu")),
              replace(plain, environment=newer, variant=replace(plain.variant, rewrites=("fold",)))]  # fmt: skip
    assert max([plain, *others], key=plainness) is plain
    assert max([plain, replace(plain, environment=newer)], key=plainness) is not plain


def test_a_model_is_charted_by_its_name(artifacts: Path) -> None:
    """3x3 to 32 channels on 28x28, then a fully connected layer to 10 classes."""
    found = document("simplecnn", "--artifacts", artifacts)
    assert Path(found["file"]).stem == "simplecnn-dynamo-exact-fp32"
    conv, gemm = 28 * 28 * 32 * (2 * 9 + 1), 10 * (2 * 32 * 28 * 28 + 1)
    assert {row["operator"]: row["flops"] for row in found["operators"]} == {
        "Conv": conv, "Gemm": gemm, "Relu": 28 * 28 * 32, "Reshape": 0,
    }  # fmt: skip
    assert found["totals"]["parameters"] == 9 * 32 + 32 + 10 * 32 * 28 * 28 + 10
    row = next(row for row in found["layers"] if row["operator"] == "Conv")
    assert row["bytes"] == 4 * (28 * 28 + 9 * 32 + 32 + 28 * 28 * 32)
    assert row["weight"] == "conv.weight"


def test_picture_and_page_are_left_beside_the_artifact(artifacts: Path) -> None:
    files = document("simplecnn", "--artifacts", artifacts, "--batch", 2)["files"]
    folder = artifacts / "simplecnn" / "ops"
    assert files["picture"] == str(folder / "simplecnn-dynamo-exact-fp32-b2.png")
    head = Path(files["picture"]).read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", head[16:24]) > (1000, 400)
    page = Path(files["page"]).read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert "node_conv2d" in page
    assert "http" not in page, "a page of its own"


class Tags(HTMLParser):
    """Tags that are open; a closing one must close the last."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_q_dq_pairs_count_as_quantized_tensors(artifacts: Path) -> None:
    plain = document("simplecnn", "--artifacts", artifacts)
    quantized = document("simplecnn-dynamo-exact-int8", "--artifacts", artifacts)
    assert quantized["totals"]["parameters"] == plain["totals"]["parameters"]
    rows = {(row["operator"], row["precision"]): row for row in quantized["operators"]}
    # Left as work of their own: the images are quantized, the logits dequantized.
    assert rows["QuantizeLinear", "fp32"]["nodes"] == rows["DequantizeLinear", "int8"]["nodes"] == 1
    assert rows["QuantizeLinear", "fp32"]["bytes"] == 28 * 28 * (4 + 1)
    conv = rows["Conv", "int8"]
    assert conv["bytes"] == 28 * 28 + 9 * 32 + 4 * 32 + 28 * 28 * 32, "int8 but for the bias in int32"
    assert conv["flops"] == next(row["flops"] for row in plain["operators"] if row["operator"] == "Conv")


def test_the_table_goes_by_layer(artifacts: Path) -> None:
    shown = succeed("export.ops", "simplecnn", "--by", "layer", "--top", 1, "--artifacts", artifacts).stdout
    assert "node_linear" in shown
    assert "3 other layers" in shown
    assert "node_conv2d" not in shown


def test_a_profile_adds_measured_time(artifacts: Path, tmp_path: Path) -> None:
    file = artifacts / "simplecnn" / "simplecnn-dynamo-exact-fp32.onnx"
    times = {"node_conv2d": 3e-3, "node_linear": 1e-3, "reorder": 1e-3}
    rows = tuple(LayerCost(name=n, operator="?", precision="fp32", seconds=s) for n, s in times.items())
    record = tmp_path / "costs.json"
    Costs(sha256=sha256(file), engine="onnxruntime", device="cpu", threads=1, batch=4, layers=rows,
          environment=environment()).save(record)  # fmt: skip
    found = document("simplecnn", "--costs", record, "--artifacts", artifacts)
    assert found["batch"] == 4
    assert [row["label"] for row in found["layers"][:2]] == ["node_conv2d", "node_linear"]
    assert found["layers"][2]["seconds"] is None, "fused: its time is the convolution's"
    assert found["totals"]["seconds_of_no_layer"] == pytest.approx(1e-3)
    shown = succeed("export.ops", "simplecnn", "--costs", record, "--artifacts", artifacts).stdout
    assert "60.0%" in shown
    assert "1 ms (20%) of the profile" in shown
    other = ("simplecnn-dynamo-exact-int8", "--costs", record, "--artifacts", artifacts)
    expect_refusal("export.ops", *other, says="profile of another file")
    wrong = ("simplecnn", "--costs", record, "--batch", 1, "--artifacts", artifacts)
    expect_refusal("export.ops", *wrong, says="at batch 4; leave --batch out")


def test_unknown_operators_have_no_flops(tmp_path: Path) -> None:
    path = save(tmp_path / "strange.onnx", """
        <ir_version: 10, opset_import: ["" : 20, "mine" : 1]>
        strange (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y)
        <float[N, 3, 8, 8] odd>
        {
            odd = mine.Warp (x)
            y = Relu (odd)
        }
    """)  # fmt: skip
    shown = succeed("export.ops", path)
    line = next(line for line in shown.stdout.splitlines() if "mine.Warp" in line)
    assert line.split()[3] == "-"
    assert "FLOPs unknown, not in the total: mine.Warp" in shown.stdout
    assert (tmp_path / "strange-ops.png").is_file()
    assert (tmp_path / "strange-ops.html").is_file()


def test_functions_are_looked_into(tmp_path: Path) -> None:
    path = save(tmp_path / "calls.onnx", """
        <ir_version: 10, opset_import: ["" : 20, "mine" : 1]>
        calls (float[N, 16] x) => (float[N, 16] y) { y = mine.twice (x) }
        <domain: "mine", opset_import: ["" : 20]>
        twice (a) => (b) {
            c = Relu (a)
            b = Add (c, c)
        }
    """)  # fmt: skip
    found = take(path, 4)
    assert {row.operator: row.flops for row in found.by_operator} == {"Relu": 64, "Add": 64}


def test_weights_in_a_file_beside_are_counted(tmp_path: Path) -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 20]>
        outside (float[N, 64] x) => (float[N, 32] y) { y = MatMul (x, w) }
    """
    model = onnx.load(save(tmp_path / "inside.onnx", text, w=(64, 32)))
    path = tmp_path / "outside.onnx"
    onnx.save(model, path, save_as_external_data=True, location="outside.bin", size_threshold=0)
    assert len(path.read_bytes()) < 1000
    found = take(path, 2)
    assert (found.parameters, found.flops) == (64 * 32, 2 * 2 * 64 * 32)
    assert len(read(path).graph.initializer[0].raw_data) == 4 * 64 * 32


@pytest.mark.slow
def test_resnet18_at_224_has_the_published_cost(tmp_path: Path) -> None:
    """1.81 G multiply-adds (torchvision's table: 1.81 GFLOPS, which there counts multiply-adds)."""
    from torchvision.models import resnet18

    module = resnet18()
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):  # TorchScript writes equal tensors once
            torch.nn.init.normal_(part.running_mean)
    found = take(write(tmp_path / "resnet18.onnx", module, 224), 1)
    products = sum(layer.flops or 0 for layer in found.all_layers if layer.matrix)
    assert products / 2 == pytest.approx(1.81e9, rel=0.005)
    assert not found.unknown
    assert found.parameters == 11_689_512 - 4_800, "batch norms are folded: a scale and a shift become a bias"


@pytest.mark.slow
def test_convnext_has_its_parameters(tmp_path: Path) -> None:
    spec = models.get("convnext")
    module = spec.build(num_classes=200, input_shape=(3, 224, 224), size=224)
    for part in module.modules():
        if isinstance(part, torch.nn.LayerNorm):
            torch.nn.init.normal_(part.weight)
            torch.nn.init.normal_(part.bias)
    found = take(write(tmp_path / "convnext.onnx", module, 224), 1)
    assert found.parameters == 18_166_472
    assert not found.unknown
    norms = next(row for row in found.by_operator if row.operator == "LayerNormalization")
    assert norms.parameters == 9_734_656


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing.onnx", "no such file"),
        ("model.xml", "is an OpenVINO model; give the .onnx"),
        ("nothing", "make one with: python -m export MODEL"),
    ],
)
def test_what_is_not_there_is_refused(tmp_path: Path, name: str, says: str) -> None:
    expect_refusal("export.ops", name, "--artifacts", tmp_path, says=says)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x0a", bytes(range(256))])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    expect_refusal("export.ops", path, says="broken.onnx")


@pytest.mark.parametrize("body", ["y = Relu (z) z = Relu (y)", "x = Identity (x) y = Relu (x)"])
def test_a_graph_in_circles_is_refused(tmp_path: Path, body: str) -> None:
    text = f'<ir_version: 10, opset_import: ["" : 20]> circle (float[2, 4] x) => (float[2, 4] y) {{ {body} }}'
    with pytest.raises(UserError, match="out of order"):
        take(save(tmp_path / "circle.onnx", text), None)


def test_a_fixed_batch_size_stays(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["" : 20]> fixed (float[2, 4] x) => (float[2, 4] y) { y = Relu (x) }'
    path = save(tmp_path / "fixed.onnx", text)
    assert take(path, None).batch == 2
    expect_refusal("export.ops", path, "--batch", 3, says="fixed at 2")

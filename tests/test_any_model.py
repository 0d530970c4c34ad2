"""Exports that start without training: a library's model, a file of the user's own, an ONNX file; and their reuse."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from checkpoints import random_checkpoint
from commands import expect_refusal, succeed
from onnx import TensorProto, helper, numpy_helper

from export import foreign, images, options, starting
from export.adopt import Request, adopt
from export.artifact import Artifact, find
from export.plan import Wish, plan_file
from trainers import external, models
from trainers.checkpoint import Checkpoint, load_model
from trainers.manifest import UserError, sha256
from trainers.spec import Preprocess

ROOT = Path(__file__).parent.parent
SMALL = ("--verify-images", 16, "--calibration-images", 16, "--target", "cpu")
NETS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes=10, input_shape=(1, 28, 28)):
        super().__init__()
        self.conv = nn.Conv2d(input_shape[0], 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.scale = nn.Parameter(torch.full((8,), 1e-6))
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        return self.fc(x + self.scale * x)


def own():
    torch.manual_seed(7)
    return Net(5, (3, 20, 12))


class Masked(Net):
    def forward(self, x, mask):
        return super().forward(x)


class Pair(Net):
    def forward(self, x):
        return super().forward(x), x


class Named(Net):
    def forward(self, x):
        return {"logits": super().forward(x)}


class Blind(Net):
    def forward(self, x):
        return 0 * super().forward(x) + 1
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """artifacts/simplecnn, exported and quantized from random weights."""
    artifacts = tmp_path_factory.mktemp("artifacts")
    random_checkpoint(artifacts, "simplecnn")
    succeed("export", "simplecnn", "--quantize", *SMALL, "--artifacts", artifacts)
    return artifacts


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(NETS)
    return path


def asked(name: str, weights: str | None = None, shape: tuple[int, int, int] | None = None) -> Request:
    return Request(name=external.allow(name), weights=weights, input_shape=shape, images=None, cache=None)


# reuse


def test_asking_again_loads_no_framework_and_writes_nothing(made: Path) -> None:
    folder = made / "simplecnn"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['export', 'simplecnn', '--quantize', *{list(map(str, SMALL))!r}, '--artifacts', {str(made)!r}]\n"
        "try:\n"
        "    runpy.run_module('export', run_name='__main__')\n"
        "except SystemExit as leaving:\n"
        "    status = leaving.code\n"
        "print(status, sorted({'torch', 'onnx', 'onnxruntime', 'PIL'} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stderr.splitlines()[-1] == "0 []", done.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_torch_artifact_counts_its_modules(made: Path) -> None:
    record = Artifact.load(made / "simplecnn" / "simplecnn-torch-exact-fp32.json")
    assert record.attested == {"Conv2d": {"float": 1}, "Linear": {"float": 1}, "ReLU": {"float": 1}}


# models that were not trained here


@pytest.mark.slow
def test_a_library_model_is_exported_without_training(tmp_path: Path) -> None:
    arguments = ("torchvision:squeezenet1_1", "--weights", "random", "--input", "3x64x64", "--quantize", *SMALL)
    done = succeed("export", *arguments, "--artifacts", tmp_path)
    assert "accuracy not measured" in done.stdout
    folder = tmp_path / "torchvision-squeezenet1_1"
    records = [found.record for found in find(folder) if found.record]
    assert [record.variant.precision for record in records] == ["fp32", "int8", "fp32"]
    for record in records:
        assert record.parity.passed
        assert record.parity.accuracy is None
        assert record.classes[0] == "tench"
        assert record.preprocess.mean == (0.485, 0.456, 0.406)
        assert record.preprocess.size == (64, 64)
    succeed("export", "torchvision:squeezenet1_1", "--quantize", *SMALL, "--artifacts", tmp_path)
    assert [found.record for found in find(folder) if found.record] == records


def test_random_weights_leave_no_tensor_constant(nets: Path, tmp_path: Path) -> None:
    """Norms, biases and layer scales too: else a file that lost them would still agree with PyTorch."""
    record = adopt(asked(f"{nets}:Net", "random", (3, 20, 12)), tmp_path / "net")
    assert record.metrics is None
    assert record.provenance == "random"
    module = load_model(record, tmp_path / "net")
    for name, tensor in module.state_dict().items():
        assert tensor.ndim == 0 or tensor.std() > 0.01, name
    again = adopt(asked(f"{nets}:Net", "random", (3, 20, 12)), tmp_path / "other")
    assert again.weights.sha256 == record.weights.sha256


def test_a_factory_that_brings_its_weights_keeps_them(nets: Path, tmp_path: Path) -> None:
    record = adopt(asked(f"{nets}:own", None, (3, 20, 12)), tmp_path / "own")
    assert record.provenance == "factory"
    assert len(record.classes) == 5
    wanted = models.get("nets.py:own").build(num_classes=10, input_shape=(3, 20, 12)).state_dict()
    module = load_model(record, tmp_path / "own")
    assert all(torch.equal(wanted[name], tensor) for name, tensor in module.state_dict().items())
    before = record.environment.time
    assert adopt(asked(f"{nets}:own", None, (3, 20, 12)), tmp_path / "own").environment.time == before


def test_weights_of_a_file_say_how_many_classes_there_are(nets: Path, tmp_path: Path) -> None:
    name = external.allow(f"{nets}:Net")
    module = models.get(name).build(num_classes=7, input_shape=(1, 28, 28))
    torch.save(module.state_dict(), tmp_path / "seven.pt")
    record = adopt(asked(f"{nets}:Net", str(tmp_path / "seven.pt"), (1, 28, 28)), tmp_path / "net")
    assert len(record.classes) == 7
    assert record.provenance == "file"
    assert record.started_from is not None
    assert record.started_from.sha256 == sha256(tmp_path / "seven.pt")
    assert torch.equal(load_model(record, tmp_path / "net").fc.weight, module.fc.weight)


def test_weights_once_given_stay(nets: Path, tmp_path: Path) -> None:
    module = models.get(external.allow(f"{nets}:Net")).build(num_classes=7, input_shape=(3, 20, 12))
    torch.save(module.state_dict(), tmp_path / "seven.pt")

    def started(model: str, **flags: object) -> Checkpoint:
        return starting.start(options.arguments_of(f"{nets}:{model}", artifacts=tmp_path, **flags)).checkpoint

    before = started("Net", weights=tmp_path / "seven.pt", input="3x20x12")
    assert started("Net") == before  # as `run` and `tune` do
    assert started("own", name="Net").model.endswith(":own"), "another model is another"


def test_published_weights_come_from_the_librarys_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a library has downloaded is taken; it is read like any other pickle, by the limited reader."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    cached.parent.mkdir(parents=True)
    module = models.get("torchvision:squeezenet1_1").build(num_classes=1000, input_shape=(3, 64, 64))
    torch.save(module.state_dict(), cached)
    record = adopt(asked("torchvision:squeezenet1_1", None, (3, 64, 64)), tmp_path / "folder")
    assert record.provenance == "pretrained"
    assert record.started_from is not None
    assert record.started_from.sha256 == sha256(cached)
    assert record.preprocess == Preprocess(
        size=(64, 64), resize=73, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    cached.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UserError, match=r"not a PyTorch file|Python objects"):
        adopt(asked("torchvision:squeezenet1_1", "pretrained", (3, 64, 64)), tmp_path / "folder")


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("Masked", "missing 1 required positional argument: 'mask'"),
        ("Pair", "2 outputs instead of one tensor of logits"),
        ("Named", "1 outputs instead of one tensor of logits"),
        ("Blind", "the same logits for different images"),
    ],
)
def test_a_model_that_is_no_classifier_is_one_line(nets: Path, tmp_path: Path, factory: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        adopt(asked(f"{nets}:{factory}", "random", (1, 28, 28)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "flags"), [("1x28x28", ()), ("3x20x12", ("--batch", 2))])
def test_images_of_any_shape(nets: Path, tmp_path: Path, shape: str, flags: tuple[object, ...]) -> None:
    done = succeed("export", f"{nets}:Net", "--input", shape, *flags, *SMALL, "--artifacts", tmp_path, "--json")
    fp32 = json.loads(done.stdout)["artifacts"][-1]
    assert fp32["inputs"][0]["shape"] == [2 if flags else None, *map(int, shape.split("x"))]
    assert fp32["parity"]["passed"]
    assert done.stderr.count("warning:") == 1


def test_a_trained_checkpoint_is_not_replaced_by_the_way(made: Path) -> None:
    expect_refusal(
        "export", "simplecnn", "--input", "1x32x32", "--artifacts", made, says="was trained on images 1x28x28"
    )


@pytest.mark.parametrize(
    ("size", "resize", "drawn"), [((224, 224), 256, (32, 32)), ((160, 96), 96, (40, 24)), ((28, 28), 28, (28, 28))]
)
def test_images_are_drawn_small_and_in_proportion(size: tuple[int, int], resize: int, drawn: tuple[int, int]) -> None:
    preprocess = Preprocess(size=size, resize=resize, mean=(), std=())
    assert images.synthetic_shape(3, preprocess) == (3, *drawn)


# ONNX files


def graph(path: Path, **changes: object) -> Path:
    """A small classifier as an ONNX file: a convolution, a mean over the image, a matrix."""
    rng = np.random.default_rng(0)
    shape = changes.get("shape", ("batch", 3, 8, 8))
    dtype = changes.get("dtype", TensorProto.FLOAT)
    weights = [
        numpy_helper.from_array(rng.standard_normal((4, 3, 3, 3)).astype(np.float32), "w"),
        numpy_helper.from_array(rng.standard_normal((4, 5)).astype(np.float32), "m"),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["y"]),
        *changes.get("nodes", []),  # type: ignore[misc]
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in changes.get("outputs", ["y"])]  # type: ignore[attr-defined]
    inputs = [helper.make_tensor_value_info(name, dtype, shape) for name in changes.get("inputs", ["x"])]  # type: ignore[attr-defined]
    made = helper.make_graph(nodes, "g", inputs, outputs, weights)
    opset = helper.make_opsetid("", int(changes.get("opset", 17)))  # type: ignore[call-overload]
    onnx.save(helper.make_model(made, opset_imports=[opset], ir_version=8), path)
    return path


def test_an_onnx_file_is_quantized_and_measured_without_pytorch(made: Path, tmp_path: Path) -> None:
    own = tmp_path / "my net.onnx"
    own.write_bytes((made / "simplecnn" / "simplecnn-dynamo-exact-fp32.onnx").read_bytes())
    done = succeed("export", own, "--quantize", *SMALL, "--artifacts", tmp_path)
    assert "compared with the file itself in ONNX Runtime" in done.stdout
    assert "warning" not in done.stderr  # the file says how its images are prepared
    folder = tmp_path / "my-net"
    copied, int8 = (Artifact.load(folder / f"my-net-onnx-exact-{name}.json") for name in ("fp32", "int8"))
    assert [(parent.role, parent.sha256) for parent in copied.parents] == [("source", sha256(own))]
    assert [parent.role for parent in int8.parents] == ["source", "fp32"]
    assert int8.attested == {"Conv": {"int8": 1}, "Gemm": {"int8": 1}}
    assert int8.parity.cosine > 0.98
    trained = Checkpoint.load(made / "simplecnn" / "checkpoint.json")
    assert copied.preprocess == trained.preprocess
    assert copied.classes == trained.classes
    benched = succeed(
        "runtime", "bench", "my-net", "--artifacts", tmp_path, "--backends", "onnxruntime", "--rounds", 2, "--seconds",
        0.1, "--threads", 1, "--processes", 1, "--json",
    )  # fmt: skip
    rows = json.loads(benched.stdout)["measurements"]
    assert [row["cell"]["twin"] for row in rows] == [False, True, False]
    assert {(row["error"], row["check"]["reason"]) for row in rows} == {(None, "")}


def old(path: Path) -> Path:
    """As files were in 2018: weights are inputs too, nodes have no names."""
    model = onnx.load(graph(path, opset=11))
    model.ir_version = 3
    model.graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in model.graph.initializer
    )
    onnx.save(model, path)
    return path


def elaborate(path: Path) -> Path:
    """With a local function, a Resize, and ONNX's own domain by its long name."""
    model = onnx.load(graph(path))
    scales = numpy_helper.from_array(np.array([1, 1, 2, 1.7], np.float32), "scales")
    model.graph.initializer.append(scales)
    opset = helper.make_opsetid("", 17)
    twice = helper.make_function("own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [opset])
    model.functions.append(twice)
    model.opset_import.insert(0, helper.make_opsetid("own", 1))
    first, *rest = model.graph.node
    first.input[0] = "larger"
    nodes = [helper.make_node("Resize", ["x", "", "scales"], ["resized"]),
             helper.make_node("Twice", ["resized"], ["larger"], domain="own"), first, *rest]  # fmt: skip
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for entry in (*model.opset_import, *model.graph.node):
        entry.domain = entry.domain or "ai.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("write", [old, elaborate])
def test_a_file_in_another_spelling_takes_every_precision(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    own = write(tmp_path / "net.onnx")
    succeed("export", own, "--all", *SMALL, "--artifacts", tmp_path)
    records = {one.record.variant.precision: one.record for one in find(tmp_path / "net") if one.record is not None}
    for name in ("fp32", "fp16", "bf16", "fp8", "int8", "int8-fp16", "int8-dynamic"):
        assert records[name].parity.passed
    integers = {operator for operator in records["int8-dynamic"].attested if operator.endswith("Integer")}
    assert integers == {"ConvInteger", "MatMulInteger"}


def test_what_is_read_of_a_file(tmp_path: Path) -> None:
    found = foreign.read(graph(tmp_path / "free.onnx"), None)
    assert (found.batch, found.input_shape, found.num_classes, found.opset) == (None, (3, 8, 8), 5, 17)
    assert found.parameters == 4 * 3 * 9 + 4 * 5
    fixed = foreign.describe(graph(tmp_path / "fixed.onnx", shape=(2, 3, 8, 8)), None)
    assert fixed.batch == 2
    sized = foreign.describe(graph(tmp_path / "any.onnx", shape=("n", 3, "h", "w")), (3, 16, 10))
    assert sized.input_shape == (3, 16, 10)
    foreign.copy(sized, tmp_path / "copy.onnx")
    assert foreign.describe(tmp_path / "copy.onnx", None).input_shape == (3, 16, 10)
    old = foreign.describe(graph(tmp_path / "old.onnx", opset=11), None)
    foreign.copy(old, tmp_path / "newer.onnx")
    assert foreign.describe(tmp_path / "newer.onnx", None).opset == foreign.LOWEST_OPSET


SECOND = [helper.make_node("Identity", ["y"], ["z"])]
PAIR = [helper.make_node("QuantizeLinear", ["y", "s"], ["q"])]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"inputs": ["x", "mask"]}, "has 2 inputs"),
        ({"nodes": SECOND, "outputs": ["y", "z"]}, "has 2 outputs"),
        ({"outputs": ["p"]}, "one row of logits an image"),
        ({"dtype": TensorProto.UINT8}, "give a model of float images"),
        ({"shape": ("n", 3, "h", "w")}, "which size to fix with --input CxHxW"),
        ({"shape": ("n", 3)}, "give a model of float images"),
        ({"nodes": PAIR}, "already quantized"),
    ],
)
def test_a_file_that_cannot_be_exported_from_is_one_line(tmp_path: Path, changes: dict, says: str) -> None:
    path = graph(tmp_path / "no.onnx", **changes)
    with pytest.raises(UserError, match=says) as caught:
        foreign.describe(path, None)
    assert str(caught.value).startswith(str(path))


def test_weights_outside_the_files_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    model = onnx.load(graph(tmp_path / "whole.onnx"))
    path = tmp_path / "inner" / "apart.onnx"
    onnx.save(model, path, save_as_external_data=True, location="apart.bin", size_threshold=0)
    assert foreign.describe(path, None).num_classes == 5
    moved = onnx.load(path, load_external_data=False)
    for tensor in moved.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = "../apart.bin"
    onnx.save(moved, path)
    with pytest.raises(UserError, match="outside its folder"):
        foreign.describe(path, None)


@pytest.mark.slow
def test_other_weights_beside_the_same_graph_are_another_model(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "apart.onnx"
    model = onnx.load(made / "simplecnn" / "simplecnn-dynamo-exact-fp32.onnx")
    onnx.save(model, path, save_as_external_data=True, location="apart.bin")
    command = ("export", path, "--verify-images", 8, "--artifacts", tmp_path / "artifacts")

    def hashes() -> list[str]:
        succeed(*command)
        return [found.record.file.sha256 for found in find(tmp_path / "artifacts" / "apart") if found.record]

    first = hashes()
    assert hashes() == first
    apart = tmp_path / "apart.bin"
    apart.write_bytes((0.9 * np.frombuffer(apart.read_bytes(), np.float32)).tobytes())
    assert hashes() != first


def test_a_file_that_takes_all_memory_ends_its_reader_alone(tmp_path: Path) -> None:
    shape = numpy_helper.from_array(np.array([1 << 19, 1 << 19], np.int64), "s")
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("ConstantOfShape", ["s"], ["big"]),
        helper.make_node("ReduceMax", ["big"], ["r"], keepdims=0),
        helper.make_node("Add", ["f", "r"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, (None, 3, 8, 8))]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    made = helper.make_graph(nodes, "g", inputs, outputs, [shape])
    path = tmp_path / "large.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with pytest.raises(UserError, match=r"large\.onnx: cannot be used as an ONNX model"):
        foreign.read(path, None)


@pytest.mark.parametrize(
    ("wish", "says"),
    [({"gelu": "tanh"}, "--gelu tanh"), ({"exporter": "eager"}, "--exporter eager"), ({"batch": 4}, "--batch 4")],
)
def test_what_the_files_exporter_has_decided_cannot_be_asked_for(wish: dict, says: str) -> None:
    batch = wish.pop("batch", None)
    with pytest.raises(UserError, match=f"{says}: an ONNX file has been exported already"):
        plan_file(Wish(**wish), asked_batch=batch)

"""`runtime profile` and `runtime roofline`, run on real engines; and what they are made of."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import exported_artifacts
import msgspec
import onnx
import pytest
from commands import expect_refusal, run, succeed

from export.artifact import Artifact
from export.costs import Costs, LayerCost, load_costs
from export.inspect.inventory import take as inventory
from runtime import backends, fusion, profilers, roofline
from runtime.ceilings import counts, working_sets
from runtime.fusion import Hint
from runtime.layers import Figures, join
from runtime.profilers import Kernel, middle
from runtime.roofline import Peak, Roofline, Stream
from trainers.manifest import environment

NET = """
<ir_version: 10, opset_import: ["" : 20]>
net (float[n, 3, 8, 8] x) => (float[n, 8, 8, 8] y)
<float[8, 3, 3, 3] w1, float[8, 8, 3, 3] w2, float two>
{
    [first] a = Conv <pads = [1, 1, 1, 1]> (x, w1)
    [relu] r = Relu (a)
    [second] b = Conv <pads = [1, 1, 1, 1]> (r, w2)
    [sum] s = Add (b, r)
    [half] h = Div (s, two)
    [erf] e = Erf (h)
    [gelu] y = Mul (e, s)
}
"""
EVERY = ["first", "relu", "second", "sum", "half", "erf", "gelu"]


@pytest.fixture(scope="module")
def net() -> onnx.ModelProto:
    model = onnx.parser.parse_model(NET)
    for name, shape in (("w1", (8, 3, 3, 3)), ("w2", (8, 8, 3, 3)), ("two", ())):
        count = 1
        for size in shape:
            count *= size
        model.graph.initializer.append(onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, shape, [2.0] * count))
    return model


@pytest.mark.parametrize(
    ("hints", "groups"),
    [
        # Every node runs alone, by its name.
        ([Hint(names=(name,)) for name in EVERY], [(name,) for name in EVERY]),
        # A blocked convolution is called after the tensor that it makes; the sum after it has no name left.
        ([Hint(names=("r",), operator="Conv"), Hint(names=("b",), operator="Conv"), Hint(outputs=("y",), inputs=("s",),
                                                                                        operator="Gelu")],
         [("first", "relu"), ("second", "sum"), ("half", "erf", "gelu")]),
        # Nothing is known of the last layer but what it makes.
        ([Hint(names=("first",), outputs=("r",), inputs=("x",), operator="Conv"), Hint(names=("second",)),
          Hint(outputs=("y",), operator="Gelu")],
         [("first", "relu"), ("second",), ("sum", "half", "erf", "gelu")]),
        # What the engine put in itself stands for nothing.
        ([Hint(names=("reorder",), operator="Reorder"), Hint(names=("first",)), Hint(names=("second",))],
         [(), ("first", "relu"), ("second", "sum", "half", "erf", "gelu")]),
    ],
)  # fmt: skip
def test_fused_nodes_are_found(net: onnx.ModelProto, hints: list[Hint], groups: list[tuple[str, ...]]) -> None:
    assert fusion.assign(fusion.read(net, 2), hints) == groups


def test_a_fused_layer_moves_what_crosses_its_edges(net: onnx.ModelProto) -> None:
    figures, map_, weights = Figures(net, 1), 8 * 8 * 8 * 4, 8 * 8 * 9 * 4
    assert figures.bytes(("second", "sum"), "fp32") == 2 * map_ + weights
    assert figures.bytes(("second",), "fp32") == 2 * map_ + weights
    assert figures.bytes(("second", "sum"), "bf16") == (2 * map_ + weights) // 2
    assert figures.flops(("second", "sum")) == 2 * 8 * 9 * 512 + 512
    assert figures.flops(()) is None


def roof() -> Roofline:
    """A machine of 100 GFLOP/s in fp32 whose memory gives 10 GB/s, and its only cache of 1 MB 100."""
    return Roofline(
        environment=environment(), caches={"L2": 1 << 20}, unavailable={}, seconds=1.0,
        peaks=(Peak(precision="fp32", engine="e", graph="g", threads=1, flops=100, samples_s=(2e-9, 1e-9)),),
        streams=(
            Stream(kernel="copy", threads=1, working_set=1 << 20, moved=100, level="L2", samples_s=(1e-9,)),
            Stream(kernel="copy", threads=1, working_set=1 << 30, moved=10, level="memory", samples_s=(1e-9,)),
        ),
    )  # fmt: skip


def test_the_roof_is_the_longer_of_arithmetic_and_traffic() -> None:
    made = roof()
    assert made.limit(10**9, 1000, "fp32", 1) == pytest.approx(0.01)
    assert made.limit(1000, 10**7, "fp32", 1) == pytest.approx(1e-3), "from memory"
    assert made.limit(1000, 10**6, "fp32", 1) == pytest.approx(1e-5), "from the cache"
    assert made.limit(0, 10**7, "int8", 1) == pytest.approx(1e-3)
    assert made.limit(1000, 10**7, "int8", 1) is None, "its peak is not known"
    assert made.threads(8) == 1


def test_rows_are_joined_to_the_file_and_the_roof(net: onnx.ModelProto) -> None:
    kernels = [Kernel(name="k1", operator="Conv", precision="fp32", seconds=1e-6, nodes=("second", "sum")),
               Kernel(name="Reorder", operator="Reorder", precision="fp32", seconds=2e-6)]  # fmt: skip
    reorder, fused = join(kernels, Figures(net, 1), roof(), 1)
    assert (reorder.name, reorder.flops, reorder.limit) == ("Reorder", None, None)
    assert fused.name == "second"
    assert fused.limit == pytest.approx((2 * 8 * 9 * 512 + 512) / 100e9)
    assert fused.reached == pytest.approx(fused.limit / 1e-6)
    assert fused.cost() == LayerCost(name="second", operator="Conv", precision="fp32", seconds=1e-6)


def test_the_middle_is_deaf_to_outliers() -> None:
    assert middle([1.0, 2.0, 3.0, 1000.0]) == 2.5
    assert middle([7.0]) == 7.0


def test_what_is_measured_reaches_beyond_the_caches() -> None:
    assert counts(1) == [1]
    assert counts(6) == [1, 2, 4, 6]
    sets = working_sets({"L1": 1 << 15, "L3": 1 << 25}, 1 << 36)
    assert sets == sorted(set(sets))
    assert sets[-1] >= 4 << 25
    assert working_sets({"L3": 1 << 30}, 1 << 32)[-1] == 1 << 29, "an eighth of the memory"


def test_every_profiler_is_of_a_backend() -> None:
    assert set(profilers.names()) <= set(backends.names())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifacts folder, with a copy of its own."""
    folder = tmp_path_factory.mktemp("profiled") / "artifacts"
    shutil.copytree(exported_artifacts.make(tmp_path_factory.getbasetemp()), folder)
    return folder


def profiled(folder: Path, target: object, backend: str) -> tuple[Costs, list[dict[str, str]], str]:
    """The record that --json prints, the rows of the CSV file, and stderr."""
    done = succeed("runtime", "profile", target, "--backend", backend, "--threads", 1, "--runs", 5, "--json",
                   "--artifacts", folder)  # fmt: skip
    (path,) = (folder / "simplecnn" / "profile").glob(f"*-{backend}-t1.json")
    assert json.loads(path.read_text()) == json.loads(done.stdout)
    with path.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    costs = Costs.load(path)
    path.unlink()
    return costs, rows, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("file", ["fp32", "int8"])
def test_every_layer_of_the_file_has_its_time(made: Path, backend: str, file: str) -> None:
    if reason := backends.get(backend).unusable("cpu"):
        pytest.skip(reason)
    path = made / "simplecnn" / f"simplecnn-dynamo-exact-{file}.onnx"
    costs, rows, told = profiled(made, path.stem, backend)
    counted = inventory(path, 1, costs)
    heavy = [row for row in counted.by_layer if row.operator in ("Conv", "Gemm")]
    assert [row.seconds is not None and row.seconds > 0 for row in heavy] == [True, True]
    assert {layer.precision for layer in costs.layers if layer.name in {row.label for row in heavy}} == {file}
    assert sum(int(row["flops"] or 0) for row in rows) == pytest.approx(counted.flops, rel=0.05)
    assert sum(float(row["share"]) for row in rows) == pytest.approx(1.0)
    assert "without the profiler" in told
    assert "run python -m runtime roofline" in told


@pytest.mark.slow
def test_export_reads_the_profile(made: Path) -> None:
    """The real commands that name a profile take it; a choice between layers then rests on measured times."""
    path = made / "simplecnn" / "simplecnn-dynamo-exact-fp32.onnx"
    profile = made / "fp32.json"
    done = succeed("runtime", "profile", path, "--backend", "onnxruntime", "--threads", 1, "--json",
                   "--artifacts", made)  # fmt: skip
    profile.write_text(done.stdout)
    assert load_costs(profile, path).engine == "onnxruntime"
    shown = succeed("export.ops", path, "--costs", profile, "--json", "--artifacts", made)
    assert json.loads(shown.stdout)["totals"]["seconds"] > 0
    ranked = succeed("export.sensitivity", "simplecnn", "--costs", profile, "--images", 8, "--target", "cpu",
                     "--calibration-images", 8, "--verify-images", 16, "--json", "--artifacts", made)  # fmt: skip
    layers = json.loads(ranked.stdout)["layers"]
    assert layers
    assert all(layer["saved"] != 0 for layer in layers)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_pytorch_leaves_a_trace_and_a_flame_graph(made: Path, backend: str) -> None:
    if reason := backends.get(backend).unusable("cpu"):
        pytest.skip(reason)
    done = succeed("runtime", "profile", "simplecnn", "--backend", backend, "--threads", 1, "--runs", 3,
                   "--artifacts", made)  # fmt: skip
    stem = made / "simplecnn" / "profile" / f"simplecnn-torch-exact-fp32-{backend}-t1"
    events = json.loads(Path(f"{stem}_trace.json").read_text())["traceEvents"]
    assert sorted(event["name"] for event in events if event["name"].startswith("step ")) == [
        "step 0", "step 1", "step 2"
    ]  # fmt: skip
    assert Path(f"{stem}_flame.svg").read_text().startswith("<svg")
    assert "convolution" in done.stdout
    assert f"{stem}_trace.json" in done.stdout
    assert "by operator" in done.stdout


@pytest.mark.slow
def test_a_roofline_is_measured_kept_and_used(made: Path) -> None:
    done = succeed("runtime", "roofline", "--threads", 1, "--seconds", 0.01, "--json", "--artifacts", made)
    here = environment()
    (path,) = (made / "roofline").glob("*.json")
    record = roofline.find(made, here)
    assert record is not None
    assert json.loads(path.read_text()) == json.loads(done.stdout)
    assert roofline.save(msgspec.structs.replace(record, environment=here), made) == path
    (older,) = set((made / "roofline").glob("*.json")) - {path}
    assert Roofline.load(older) == record
    peak = record.peak("fp32", 1)
    assert peak is not None
    assert peak.rate > 1e9
    assert record.stream(1, 1).rate > 1e8
    other = msgspec.structs.replace(here, cpu="another processor")
    assert roofline.find(made, other) is None

    shown = succeed("runtime", "profile", "simplecnn", "--backend", "onnxruntime", "--threads", 1, "--artifacts", made)
    assert "roof: as measured with 1 thread" in shown.stdout
    picture = made / "simplecnn" / "profile" / "simplecnn-dynamo-exact-fp32-onnxruntime-t1.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert str(picture) in shown.stdout

    succeed("runtime", "bench", "simplecnn", "--backends", "onnxruntime", "--rounds", 1, "--processes", 1,
            "--seconds", "0.05", "--device", "cpu", "--artifacts", made)  # fmt: skip
    fastest = succeed("runtime", "profile", "simplecnn", "--top", 3, "--artifacts", made)
    assert "in onnxruntime on cpu" in fastest.stdout, "the only engine of the report"
    succeed("runtime", "report", "--html", made / "page.html", "--artifacts", made)
    page = (made / "page.html").read_text()
    assert f"{peak.rate / 1e9:.0f} GFLOP/s" in page, "the roofline is in the page"
    assert page.count("operations a byte</title>") >= 2, "with the layers below it"
    shutil.rmtree(made / "roofline")


@pytest.mark.slow
def test_a_file_without_a_record_is_profiled_beside_itself(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "foreign.onnx"
    path.write_bytes((made / "simplecnn" / "simplecnn-dynamo-exact-fp32.onnx").read_bytes())
    succeed("runtime", "profile", path, "--backend", "onnxruntime", "--threads", 1, "--batch", 3, "--artifacts", made)
    costs = Costs.load(tmp_path / "profile" / "foreign-onnxruntime-b3-t1.json")
    assert costs.batch == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("simplecnn", "--backend", "onnxruntim"), "did you mean onnxruntime"),
        (("simplecnn", "--backend", "null"), "null has no profiler"),
        (("simplecnn-dynamo-exact-int8",), "name its engine with --backend"),
        (("simplecnnn", "--backend", "onnxruntime"), "there are the models simplecnn"),
        (("simplecnn", "--backend", "onnxruntime", "--threads", 4096), "give at most as many"),
        (("simplecnn", "--backend", "onnxruntime", "--option", "graph=some"), "choose from all"),
        (("simplecnn", "--backend", "onnxruntime", "--option", "graph"), "not KEY=VALUE"),
        (("simplecnn-torch-exact-fp32", "--backend", "onnxruntime"), "choose another --backend"),
    ],
)
def test_mistakes_are_one_line(made: Path, arguments: tuple[object, ...], says: str) -> None:
    expect_refusal("runtime", "profile", *arguments, "--artifacts", made, says=says)


@pytest.mark.slow
def test_wrong_outputs_are_not_profiled(made: Path, tmp_path: Path) -> None:
    """A record that promises fp32 of a file in int8."""
    folder = tmp_path / "simplecnn"
    shutil.copytree(made / "simplecnn", folder)
    record_path = folder / "simplecnn-dynamo-exact-fp32.json"
    other = Artifact.load(folder / "simplecnn-dynamo-exact-int8.json")
    record = Artifact.load(record_path)
    msgspec.structs.replace(record, files=other.files).save(folder / "simplecnn-dynamo-exact-int8.json")
    done = run("runtime", "profile", folder / other.file.path, "--backend", "onnxruntime", "--artifacts", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "wrong outputs: max error" in done.stderr

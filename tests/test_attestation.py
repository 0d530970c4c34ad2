"""What engines really execute, asked of the real ones; and when that is less than the record promises."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import exported_artifacts
import msgspec
import pytest
from commands import succeed

from export.artifact import Artifact
from runtime import attest, backends
from runtime.attest.tensorrt import read
from runtime.attestation import Ran, shortfall
from trainers.process import Worker

GOLDEN = Path(__file__).parent / "golden" / "artifact-2.json"


def record(**attested: dict[str, int]) -> Artifact:
    return msgspec.structs.replace(Artifact.load(GOLDEN), attested=attested)


def ran(device: str = "cpu", **operators: dict[str, int]) -> Ran:
    return Ran(device=device, operators=operators, nodes={device: 60})


@pytest.mark.parametrize(
    ("promised", "executed", "line"),
    [
        ({"Conv": {"int8": 53}}, {"Conv": {"int8": 53}}, None),
        ({"Conv": {"int8": 53}}, {"Conv": {"int8": 35, "float": 18}},
         "18 of 53 Conv ran in fp32, the record says int8"),
        ({"Conv": {"int8": 50, "float": 3}}, {"Conv": {"int8": 50, "float": 3}}, None),
        ({"Conv": {"int8": 50, "float": 3}}, {"Conv": {"int8": 49, "float": 4}},
         "1 of 50 Conv ran in fp32, the record says int8"),
        ({"Conv": {"int8": 53}}, {"Conv": {"int8": 51}}, None),
        ({"Gemm": {"int8": 1}, "MatMul": {"int8": 48}}, {"Gemm": {"int8": 49}, "MatMul": {"float": 24}}, None),
        ({"Gemm": {"int8": 1}, "MatMul": {"int8": 48}}, {"MatMul": {"int8": 40, "float": 33}},
         "9 of 49 Gemm and MatMul ran in fp32, the record says int8"),
        ({"ConvInteger": {"uint8": 20}}, {"Conv": {"int8": 20}}, None),
        ({"Conv": {"float16": 20}}, {"Conv": {"float": 20}}, "20 of 20 Conv ran in fp32, the record says fp16"),
        ({"Conv": {"float": 20}}, {"Conv": {"bfloat16": 20}}, "20 of 20 Conv ran in bf16, the record says fp32"),
        ({"Conv2d": {"float": 20}, "Linear": {"float": 1}}, {"Conv": {"float": 20}, "Gemm": {"float": 1}}, None),
        ({"LayerNormalization": {"float": 9}}, {"LayerNormalization": {"bfloat16": 9}}, None),
        ({"Conv": {"int8": 53}}, {}, None),
    ],
)  # fmt: skip
def test_a_shortfall_is_what_ran_in_another_precision_than_promised(
    promised: dict[str, dict[str, int]], executed: dict[str, dict[str, int]], line: str | None
) -> None:
    assert shortfall(record(**promised), ran(**executed)) == line


def test_an_option_that_asks_for_another_rest_is_no_shortfall() -> None:
    mixed = record(Conv={"int8": 50, "float": 3})
    executed = ran(Conv={"int8": 50, "bfloat16": 3})
    assert shortfall(mixed, executed) == "3 of 3 Conv ran in bf16, the record says fp32"
    assert shortfall(mixed, executed, rest="bf16") is None
    assert shortfall(mixed, ran(Conv={"int8": 40, "bfloat16": 13}), rest="bf16") == (
        "10 of 50 Conv ran in bf16, the record says int8"
    )


def test_nodes_on_another_device_are_a_shortfall() -> None:
    executed = Ran(device="CUDA", operators={"Conv": {"float": 20}}, nodes={"CUDA": 37, "CPU": 3})
    assert shortfall(record(Conv={"float": 20}), executed) == "3 of 40 nodes ran in CPU, CUDA was asked for"


def test_every_attester_is_of_a_backend() -> None:
    assert set(attest.names()) <= set(backends.names())


def test_tensorrts_inspector_is_read_as_nvidia_documents_it() -> None:
    convolution = {
        "Name": "conv1 + relu1", "LayerType": "CaskConvolution", "ParameterType": "Convolution",
        "Inputs": [{"Name": "x", "Dimensions": [16, 512, 28, 28],
                    "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format."}],
        "Metadata": "[ONNX Layer: conv1]\x1e[ONNX Layer: relu1]",
    }  # fmt: skip
    product = {"Name": "fc", "LayerType": "gemm", "Inputs": [{"Format/Datatype": "Row major linear FP32"}]}
    copy = {"Name": "Reformatting CopyNode", "LayerType": "Reformat", "Inputs": [{"Format/Datatype": "Half"}]}
    found = read([convolution, product, copy])
    assert found.operators == {"Conv": {"int8": 1}, "MatMul": {"float": 1}}
    assert found.conversions == {"Reformat": 1}
    vague = read(["conv1 + relu1", "fc"])
    assert vague.operators == {}
    assert "detailed verbosity" in vague.notes[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model whose files are fp32, fp16, and int8 placed for two engines."""
    folder = tmp_path_factory.mktemp("attested") / "artifacts"
    shutil.copytree(exported_artifacts.make(tmp_path_factory.getbasetemp()), folder)
    few = ("--verify-images", 16, "--calibration-images", 8)
    succeed("export", "simplecnn", "--quantize", "int8,fp16", "--target", "tensorrt", *few, "--artifacts", folder)
    return folder / "simplecnn"


@contextmanager
def loaded(path: Path, backend: str, **options: str) -> Iterator[Worker]:
    worker = Worker("runtime.worker", threads=1)
    try:
        worker.ask("open", timeout=240, path=str(path), backend=backend, device="cpu", threads=1, options=options)
        worker.ask("load", timeout=300, batch=2, input=[None, 3, 32, 32])
        yield worker
    finally:
        worker.close()


def asked(path: Path, backend: str, **options: str) -> tuple[Artifact, Ran]:
    with loaded(path, backend, **options) as worker:
        return Artifact.load(path.with_suffix(".json")), msgspec.convert(worker.ask("attest", timeout=480), Ran)


def usable(backend: str) -> None:
    if reason := backends.get(backend).unusable("cpu"):
        pytest.skip(reason)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "file", "line"),
    [
        ("onnxruntime", "fp32", None),
        ("onnxruntime", "int8", None),
        ("onnxruntime", "int8-tensorrt", "1 of 1 Conv ran in fp32, the record says int8"),
        ("onnxruntime", "fp16", "1 of 1 Conv ran in fp32, the record says fp16"),
        ("openvino", "fp32", None),
        ("openvino", "int8", None),
        ("openvino", "fp16", "1 of 1 Conv ran in fp32, the record says fp16"),
    ],
)
def test_an_engine_that_leaves_a_files_precision_is_told_of(
    made: Path, backend: str, file: str, line: str | None
) -> None:
    usable(backend)
    artifact, executed = asked(made / f"simplecnn-dynamo-exact-{file}.onnx", backend)
    assert shortfall(artifact, executed) == line
    assert executed.nodes == {executed.device: sum(sum(kinds.values()) for kinds in executed.operators.values())}


@pytest.mark.slow
def test_onnxruntimes_kernels_are_counted(made: Path) -> None:
    _, executed = asked(made / "simplecnn-dynamo-exact-int8.onnx", "onnxruntime")
    assert executed.device == "CPUExecutionProvider"
    assert executed.operators["Conv"] == {"int8": 1}
    assert "1 QLinearConv" in executed.notes
    _, executed = asked(made / "simplecnn-dynamo-exact-fp16.onnx", "onnxruntime")
    assert executed.conversions["Cast"] >= 1


@pytest.mark.slow
def test_openvino_in_bf16_is_told_of_unless_asked_for(made: Path) -> None:
    usable("openvino")
    artifact, executed = asked(made / "simplecnn-dynamo-exact-fp32.onnx", "openvino", precision="bf16")
    if executed.operators["Conv"] == {"float": 1}:
        pytest.skip("this processor has no bf16")
    assert shortfall(artifact, executed) == "1 of 1 Conv ran in bf16, the record says fp32"
    assert shortfall(artifact, executed, rest="bf16") is None


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_pytorch_tells_its_types_and_breaks(made: Path, backend: str) -> None:
    usable(backend)
    artifact, executed = asked(made / "simplecnn-torch-exact-fp32.safetensors", backend)
    assert shortfall(artifact, executed) is None
    assert executed.operators["Conv"] == {"float": 1}
    assert executed.operators["Gemm"] == {"float": 1}
    assert "4 parameters in float32" in executed.notes
    assert ("0 graph breaks" in executed.notes) == ("0 recompilations" in executed.notes) == (backend == "compiled")


@pytest.mark.slow
def test_what_computes_nothing_attests_nothing(made: Path) -> None:
    assert asked(made / "simplecnn-dynamo-exact-fp32.onnx", "null")[1] == Ran()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_session_that_was_asked_goes_on(made: Path, backend: str) -> None:
    usable(backend)
    with loaded(made / "simplecnn-dynamo-exact-int8.onnx", backend) as worker:
        turn = {"regime": "device", "seconds": 0.05, "at_least": 3, "at_most": 100}
        worker.ask("warm", timeout=240, regime="device", seconds=0.1)
        worker.ask("turn", timeout=240, **turn)
        first = worker.ask("attest", timeout=480)
        assert len(worker.ask("turn", timeout=240, **turn)["samples_ns"]) >= 3
        assert worker.ask("attest", timeout=480) == first
        assert worker.ask("modules", timeout=240, names=["torch"]) == {"imported": []}

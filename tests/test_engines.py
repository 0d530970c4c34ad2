"""Every model x exporter x precision in the engines themselves, as benchmarks/engines.py tabulates them.

TensorRT for RTX compiles without a GPU, so a machine without one still meets the real parser and builder. REFUSED holds
what an engine is known not to take, with its reason: a cell that starts to work fails here too, so that the published
table is made anew.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from checkpoints import fake_quantized_checkpoint, random_checkpoint
from probing import ANOTHER_FORMAT, ARCHITECTURES, NOT_INSTALLED, RUNNERS, compiles, runs

from export.artifact import Artifact
from export.exporters import EXPORTERS
from export.pipeline import Job, export
from export.precision import CONVERTED, QAT, placements
from export.variant import Variant
from trainers import models
from trainers.checkpoint import Checkpoint
from trainers.open import open_dataset

pytestmark = pytest.mark.slow

FORMS = [(name, target) for name in CONVERTED for target in placements(name)]
CELLS = [(model, exporter, *form) for model in models.names() for exporter in EXPORTERS for form in FORMS]
SMALL = {"convnext": {"size": 32, "blocks": "1,1,1,1"}}  # the layers of the whole one, a hundredth of the work
# (precision, target, engine): a part of the engine's reason, for all models and exporters.
REFUSED: dict[tuple[str, str | None, str], str] = {
    ("bf16", None, "onnxruntime"): "Could not find an implementation for Conv(22)",
    ("int8", "openvino", "onnxruntime"): ANOTHER_FORMAT,
    ("fp8", "tensorrt", "SM86"): "no way to build",  # it has no such units
    # What ONNX Runtime quantizes dynamically has no counterpart in TensorRT.
    **{("int8-dynamic", None, name): "DynamicQuantizeLinear" for name in ARCHITECTURES},
    # Zero points and int32 biases, which ONNX Runtime's integer kernels need, are what TensorRT does not take.
    **{("int8", "cpu", name): "INVALID_NODE DequantizeLinear" for name in ARCHITECTURES},
    **{("int8", "openvino", name): ANOTHER_FORMAT for name in ARCHITECTURES},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@cache
def job(folder: Path, model: str, make: Callable[..., Checkpoint] = random_checkpoint) -> Job:
    checkpoint = make(folder, model, **SMALL.get(model, {}))
    data = open_dataset("synthetic", shape=checkpoint.input_shape, num_classes=len(checkpoint.classes))
    place = folder / model
    return Job(checkpoint=checkpoint, source=place, folder=place, data=data, calibration_images=32, verify_images=64)


def made(folder: Path, model: str, variant: Variant) -> tuple[Path, Artifact]:
    if variant.target == "openvino":
        pytest.importorskip("nncf", reason="install the openvino extra to quantize for it")
    artifact = export(job(folder, model), variant)
    assert artifact.parity.passed, artifact.parity.reason
    return folder / model / artifact.file.path, artifact


@pytest.mark.parametrize(("model", "exporter", "precision", "target"), CELLS)
def test_engines_take_it_or_refuse_it_as_published(
    folder: Path, model: str, exporter: str, precision: str, target: str | None
) -> None:
    path, _ = made(folder, model, Variant(exporter=exporter, precision=precision, target=target))
    # fp8 is what architectures differ in; the published table has every cell of all three.
    chosen = ARCHITECTURES if precision == "fp8" or model == "simplecnn" else ("SM89",)
    said = {name: compiles(path, name) for name in chosen}
    said |= {name: runs(path, name, folder / model / "reference.safetensors") for name in RUNNERS}
    for engine, reason in said.items():
        if NOT_INSTALLED in reason:
            continue
        known = REFUSED.get((precision, target, engine), "")
        assert known in reason if known else not reason, f"{engine}: {reason or 'takes it now'}; known: {known}"


@pytest.mark.parametrize("model", models.names())
def test_onnxruntime_computes_every_convolution_in_integers(folder: Path, tmp_path: Path, model: str) -> None:
    """A pair that it does not like leaves a convolution in float, without a word: its optimised graph shows it."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    path, _ = made(folder, model, Variant(precision="int8", target="cpu"))
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    convolutions = [node for node in onnx.load(path).graph.node if node.op_type == "Conv"]
    grouped = sum(any(a.name == "group" and a.i > 1 for a in node.attribute) for node in convolutions)
    after = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert after.count("QLinearConv") == len(convolutions) - grouped > 0
    # A grouped convolution with a channel multiplier has no integer kernel worth the name: it stays in float.
    assert after.count("Conv") + after.count("FusedConv") == grouped == (4 if model == "convnext" else 0)


@pytest.mark.parametrize("model", ["simplecnn", "convnext"])  # resnet18 has no layer that these have not
def test_tensorrt_builds_what_qat_trained(tmp_path: Path, model: str) -> None:
    pytest.importorskip("tensorrt_rtx", reason="install the tensorrt-rtx extra to meet TensorRT's compiler")
    pytest.importorskip("torchao", reason="install the qat extra to prepare a model for quantization-aware training")
    checkpoint = fake_quantized_checkpoint(tmp_path, model, **SMALL.get(model, {}))
    data = open_dataset("synthetic", shape=checkpoint.input_shape, num_classes=len(checkpoint.classes))
    place = tmp_path / model
    work = Job(checkpoint=checkpoint, source=place, folder=place, data=data, calibration_images=32, verify_images=16)
    artifact = export(work, Variant(precision=QAT, target="tensorrt"))
    assert artifact.parity.passed, artifact.parity.reason
    assert set(artifact.attested["Conv"]) == set(artifact.attested["Gemm"]) == {"int8"}
    assert compiles(place / artifact.file.path, "SM86") == ""

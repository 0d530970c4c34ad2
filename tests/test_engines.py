"""Every model x exporter x precision in the engines themselves: ONNX Runtime runs it, TensorRT's compiler builds it.

TensorRT for RTX compiles without a GPU, so a machine without one still meets the real parser and builder.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import fake_quantized_checkpoint, random_checkpoint

from export.exporters import EXPORTERS
from export.parity import session
from export.pipeline import Job, export
from export.precision import CONVERTED, PRECISIONS, QAT
from export.variant import Variant
from trainers import models
from trainers.checkpoint import Checkpoint
from trainers.open import open_dataset

pytestmark = pytest.mark.slow

ARCHITECTURES = ("SM86", "SM120")
CELLS = [(model, exporter, precision) for model in models.names() for exporter in EXPORTERS for precision in CONVERTED]
# What ONNX Runtime quantizes dynamically (ConvInteger) has no counterpart in TensorRT.
BUILT = [cell for cell in CELLS if cell[2] != "int8-dynamic"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@cache
def job(folder: Path, model: str, make: Callable[[Path, str], Checkpoint] = random_checkpoint) -> Job:
    checkpoint = make(folder, model)
    data = open_dataset("synthetic", shape=checkpoint.input_shape, num_classes=len(checkpoint.classes))
    place = folder / model
    return Job(
        checkpoint=checkpoint, source=place, folder=place, data=data, calibration_images=32, verify_images=16
    )  # fmt: skip


def file_of(folder: Path, model: str, exporter: str, precision: str, target: str) -> Path:
    placed = target if PRECISIONS[precision].targets else None
    artifact = export(job(folder, model), Variant(exporter=exporter, precision=precision, target=placed))
    assert artifact.parity.passed, artifact.parity.reason
    return folder / model / artifact.file.path


@pytest.mark.parametrize(("model", "exporter", "precision"), CELLS)
def test_onnxruntime_runs_it(folder: Path, model: str, exporter: str, precision: str) -> None:
    loaded = session(file_of(folder, model, exporter, precision, "cpu"))
    assert loaded.get_providers()[0] == "CPUExecutionProvider"
    shape = models.get(model).input_shape
    images = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    logits = loaded.run(None, {"images": images})[0]
    assert logits.shape == (3, models.get(model).num_classes)
    assert logits.std(axis=0).max() > 1e-3


@pytest.mark.parametrize("model", models.names())
def test_onnxruntime_computes_every_convolution_in_integers(folder: Path, tmp_path: Path, model: str) -> None:
    """A pair that it does not like leaves a convolution in float, without a word: its optimised graph shows it."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    path = file_of(folder, model, "dynamo", "int8", "cpu")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    convolutions = [node for node in onnx.load(path).graph.node if node.op_type == "Conv"]
    grouped = sum(any(a.name == "group" and a.i > 1 for a in node.attribute) for node in convolutions)
    after = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert after.count("QLinearConv") == len(convolutions) - grouped > 0
    # A grouped convolution with a channel multiplier has no integer kernel worth the name: it stays in float.
    assert after.count("Conv") + after.count("FusedConv") == grouped == (18 if model == "convnext" else 0)


@pytest.mark.parametrize(("model", "exporter", "precision"), BUILT)
def test_tensorrt_builds_it(folder: Path, model: str, exporter: str, precision: str) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="install the tensorrt-rtx extra to meet TensorRT's compiler")
    assert len(compile_engine(trt, file_of(folder, model, exporter, precision, "tensorrt"))) > 1000


@pytest.mark.parametrize("model", models.names())
def test_tensorrt_builds_what_qat_trained(tmp_path: Path, model: str) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="install the tensorrt-rtx extra to meet TensorRT's compiler")
    pytest.importorskip("torchao", reason="install the qat extra to prepare a model for quantization-aware training")
    artifact = export(job(tmp_path, model, fake_quantized_checkpoint), Variant(precision=QAT, target="tensorrt"))
    assert artifact.parity.passed, artifact.parity.reason
    assert set(artifact.attested["Conv"]) == set(artifact.attested["Gemm"]) == {"int8"}
    assert len(compile_engine(trt, tmp_path / model / artifact.file.path)) > 1000


def compile_engine(trt: Any, path: Path) -> bytes:
    """Parse and build for batches of 1 to 8 on ARCHITECTURES, types as the file has them."""
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(path)), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(ARCHITECTURES)
    for index, name in enumerate(ARCHITECTURES):
        assert config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    images = network.get_input(0)
    profile = builder.create_optimization_profile()
    profile.set_shape(images.name, *((batch, *tuple(images.shape)[1:]) for batch in (1, 4, 8)))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None, f"no way found to build {path.name}"
    return bytes(plan)

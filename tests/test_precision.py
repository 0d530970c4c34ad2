"""Precisions on a real small model: what the files hold, that they are right, and that raw pixels give the same."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from checkpoints import random_checkpoint

from export import engines
from export.artifact import Artifact, Found, find, open_file
from export.inspect.heat import heat_of
from export.pipeline import Job, export
from export.pixels import normalise, to_pixels
from export.precision import CONVERTED, PRECISIONS, placements
from export.precision.fp8 import FP8_LARGEST, rounded
from export.variant import Variant
from runtime import backends
from runtime.check import Reference, answers, judge
from trainers.open import open_dataset
from trainers.preprocess import prepare
from trainers.spec import Preprocess

FORMS = [(name, target) for name in CONVERTED for target in placements(name)]
WEIGHTS = {"fp32": "float", "fp16": "float16", "bf16": "bfloat16", "fp8": "float8e4m3fn", "int8-dynamic": "uint8"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("precision")


@cache
def job(folder: Path, method: str = "minmax") -> Job:
    checkpoint = random_checkpoint(folder, "simplecnn")
    data = open_dataset("synthetic", shape=checkpoint.input_shape, num_classes=len(checkpoint.classes))
    place = folder / "simplecnn"
    return Job(
        checkpoint=checkpoint, source=place, folder=place, data=data, calibration_images=32, verify_images=32,
        calibration_method=method,
    )  # fmt: skip


def made(folder: Path, precision: str, target: str | None, dtype: str = "float32") -> Artifact:
    if target == "openvino":
        pytest.importorskip("nncf", reason="install the openvino extra to quantize for it")
    artifact = export(job(folder), Variant(precision=precision, target=target, input_dtype=dtype))
    assert artifact.parity.passed, artifact.parity.reason
    return artifact


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize(
    ("precision", "target"),
    [pytest.param(*form, marks=pytest.mark.slow) if form[1] == "openvino" else form for form in FORMS],
)
def test_files_hold_what_they_promise(folder: Path, precision: str, target: str | None, dtype: str) -> None:
    artifact = made(folder, precision, target, dtype)
    matrices = {name: kinds for name, kinds in artifact.attested.items() if name in PRECISIONS[precision].operators}
    assert {kind for kinds in matrices.values() for kind in kinds} == {WEIGHTS.get(precision, "int8")}
    assert sum(sum(kinds.values()) for kinds in matrices.values()) == 2  # a convolution and the classifier
    assert {artifact.requested[name] for name in matrices} == {precision}
    assert artifact.inputs[0].dtype == {"float32": "float", "uint8": "uint8"}[dtype]
    assert artifact.outputs[0].dtype == "float"
    assert len(artifact.files) == (2 if target == "openvino" else 1)
    found = {item.name: item for item in find(folder / "simplecnn")}[artifact.variant.name("simplecnn")]
    assert open_file(found.path).kind == ("openvino" if target == "openvino" else "onnx")


def test_the_input_types_answer_alike(folder: Path) -> None:
    """fp32 from raw pixels and from normalised images: the same function of the same image."""
    plain, raw = made(folder, "fp32", None), made(folder, "fp32", None, "uint8")
    reference = Reference.load(folder / "simplecnn" / "reference.safetensors")
    pixels = reference.as_pixels(raw.preprocess).images
    assert pixels.dtype == np.uint8
    a = engines.load(folder / "simplecnn" / plain.file.path)(reference.images)
    b = engines.load(folder / "simplecnn" / raw.file.path)(pixels)
    assert np.abs(a - b).max() < 1e-5 * a.std()


def test_a_timed_session_is_fed_pixels(folder: Path) -> None:
    artifact = made(folder, "int8", "cpu", "uint8")
    reference = Reference.load(folder / "simplecnn" / "reference.safetensors").as_pixels(artifact.preprocess)
    found = open_file(folder / "simplecnn" / artifact.file.path)
    session = backends.get("onnxruntime").load(found, device="cpu", threads=1, batch=4, options={})
    assert judge(answers(session, reference.images, 4), reference, artifact).reason == ""
    session.close()


def test_pixels_come_back_from_normalised_images() -> None:
    preprocess = Preprocess(size=(2, 128), resize=2, mean=(0.4914, 0.4, 0.1), std=(0.2, 0.25, 0.3))
    every = np.arange(256, dtype=np.uint8).reshape(1, 1, 2, 128).repeat(3, axis=1)
    assert (to_pixels(normalise(every, preprocess), preprocess) == every).all()


def test_a_scaled_image_has_the_same_pixels_with_any_number_of_threads() -> None:
    """64 to 224 pixels leaves many values halfway between two, where threads differ in the last bit."""
    preprocess = Preprocess(size=(224, 224), resize=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    small = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8))
    threads, pixels = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        pixels.append(to_pixels(prepare(small, preprocess).numpy(), preprocess))
    torch.set_num_threads(threads)
    assert (pixels[0] == pixels[1]).all()
    assert (pixels[0] == pixels[2]).all()


@pytest.mark.parametrize("where", [".", "failed"])
@pytest.mark.parametrize(("precision", "target"), [("bf16", None), ("int8", "cpu")])
def test_the_errors_of_a_heat_map(folder: Path, tmp_path: Path, precision: str, target: str | None, where: str) -> None:
    home = folder / "simplecnn"
    record = made(folder, precision, target)
    for name in (record.reference.path, *(edge.path for edge in record.parents), record.file.path):
        place = tmp_path / where if name == record.file.path else tmp_path
        place.mkdir(exist_ok=True)
        shutil.copyfile(home / name, place / name)
    found = heat_of(Found(path=tmp_path / where / record.file.path, record=record), None).errors
    assert len(found) >= 2
    assert 0 < max(found.values()) < 0.3


def test_bf16_emulated_in_onnxruntime_rounds_as_the_file_does(folder: Path) -> None:
    """Every result of the emulation is a bfloat16, and far from fp32 while near to an engine that has the type."""
    artifact = made(folder, "bf16", None)
    path = folder / "simplecnn" / artifact.file.path
    images = np.random.default_rng(0).normal(size=(8, 1, 28, 28)).astype(np.float32)
    emulated = engines.rounding(path)(images)
    assert (emulated == emulated.astype(ml_dtypes.bfloat16).astype(np.float32)).all()
    exact = engines.load(folder / "simplecnn" / made(folder, "fp32", None).file.path)(images)
    assert 1e-4 * exact.std() < np.abs(emulated - exact).max() < 0.05 * exact.std()
    pytest.importorskip("openvino", reason="install the openvino extra to compare with its bfloat16")
    assert np.abs(emulated - engines.openvino(path, "bf16")(images)).max() < 0.03 * exact.std()


def test_fp8_takes_the_nearest_number_and_saturates() -> None:
    weight = np.array([[0.0, 1.06, -448.0, 500.0], [0.0, 2.12, -896.0, 1000.0]], np.float32)
    got = rounded(weight, np.array([1.0, 2.0], np.float32), axis=0).astype(np.float32)
    assert got.tolist() == [[0.0, 1.0, -FP8_LARGEST, FP8_LARGEST]] * 2


def test_fp8_pairs_scale_the_largest_magnitude_to_448(folder: Path) -> None:
    artifact = made(folder, "fp8", "tensorrt")
    graph = onnx.load(folder / "simplecnn" / artifact.file.path).graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = [stored[n.input[0]] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in stored]
    assert len(weights) == 2
    for weight in weights:
        assert np.abs(weight.astype(np.float32)).reshape(len(weight), -1).max() == FP8_LARGEST


@pytest.mark.parametrize("target", ["cpu"])
def test_auto_records_what_it_tried_and_is_found_again(folder: Path, target: str) -> None:
    first = export(job(folder, "auto"), Variant(precision="int8", target=target))
    calibration = first.variant.calibration
    assert calibration is not None
    assert calibration.method == calibration.tried[0].method
    assert sorted(one.method for one in calibration.tried) == ["entropy", "minmax", "percentile"]
    divergences = [one.divergence for one in calibration.tried]
    assert divergences == sorted(divergences)
    assert divergences[0] > 0
    job(folder, "auto").made.clear()
    again = export(job(folder, "auto"), Variant(precision="int8", target=target))
    assert again == first

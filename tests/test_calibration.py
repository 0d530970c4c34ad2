"""Ranges, methods and the images that set them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from checkpoints import random_checkpoint
from commands import expect_refusal
from onnx import TensorProto, helper

from export import calibration, parity
from export.precision import METHODS, Conversion, convert
from export.precision.ranges import BINS, Observed, activations, entropy_threshold, observe
from export.reference import Verification
from trainers.manifest import CheckFailed
from trainers.open import open_dataset
from trainers.spec import Preprocess

RNG = np.random.default_rng(0)


def seen(*batches: np.ndarray) -> Observed:
    observed = Observed()
    for batch in batches:
        observed.update(float(batch.min()), float(batch.max()), batch)
    return observed


def test_growing_ranges_keep_every_count() -> None:
    """Batches of ever larger values merge bins; the histogram is that of all values at once."""
    batches = [scale * RNG.normal(size=5000) for scale in (1e-3, 1, 50)]
    observed = seen(*batches)
    values = np.concatenate(batches)
    expected, _ = np.histogram(values, BINS, (-observed.reach, observed.reach))
    assert observed.counts.sum() == len(values)
    assert np.abs(observed.counts - expected).sum() <= 0.001 * len(values)  # a value on an edge may fall either way
    assert observed.range("minmax") == (values.min(), values.max())


def test_percentiles_are_those_of_the_values() -> None:
    values = RNG.normal(size=200_000) + 0.5
    low, high = seen(values).range("percentile")
    width = 2 * seen(values).reach / BINS
    assert low == pytest.approx(np.percentile(values, 0.01), abs=2 * width)
    assert high == pytest.approx(np.percentile(values, 99.99), abs=2 * width)


def test_entropy_clips_rare_outliers_and_keeps_what_is_common() -> None:
    bulk = np.abs(RNG.normal(size=100_000))
    outliers = np.concatenate([bulk, [60.0]])
    assert 2 < seen(outliers).range("entropy")[1] < 20
    uniform = RNG.uniform(0, 1, 100_000)
    assert seen(uniform).range("entropy")[1] > 0.95


def test_the_entropy_of_a_coarse_histogram_is_found_by_hand() -> None:
    """128 bins are 128 levels: nothing is lost without clipping, so the whole range is kept."""
    assert entropy_threshold(np.full(128, 10)) == 1.0


def scaled(factor: float) -> onnx.ModelProto:
    """images -> Mul -> product -> Relu -> positive."""
    nodes = [helper.make_node("Mul", ["images", "factor"], ["product"]), helper.make_node("Relu", ["product"], ["out"])]
    shape = ["batch", 3, 8, 8]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("images", TensorProto.FLOAT, shape)], [value("out", TensorProto.FLOAT, shape)],
        [helper.make_tensor("factor", TensorProto.FLOAT, [], [factor])],
        value_info=[value("product", TensorProto.FLOAT, shape)],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("histograms", [False, True])
def test_the_graph_reduces_its_own_activations(histograms: bool) -> None:
    batches = [RNG.normal(size=(size, 3, 8, 8)).astype(np.float32) for size in (4, 4, 1)]
    model = scaled(-2.0)
    names = activations(model, ["Mul", "Relu"], (), outputs=True)
    assert names == ["images", "product", "out"]
    found = observe(model, names, batches, histograms)
    values = -2 * np.concatenate(batches)
    assert found["product"].range("minmax") == (values.min(), values.max())
    assert found["out"].range("minmax") == (0.0, values.max())
    assert found["product"].counts.sum() == (values.size if histograms else 0)


def test_a_constant_activation_is_named_and_one_that_is_not_finite_is_refused(capsys: pytest.CaptureFixture) -> None:
    images = [RNG.normal(size=(2, 3, 8, 8)).astype(np.float32)]
    observe(scaled(0.0), ["product"], images, histograms=False)
    assert capsys.readouterr().err == "note: constant on all calibration images: product\n"
    with pytest.raises(CheckFailed, match="product is not finite"):
        observe(scaled(float("nan")), ["product"], images, histograms=False)


def test_single_class_images_are_flagged(capsys: pytest.CaptureFixture) -> None:
    data = open_dataset("synthetic", shape=(1, 28, 28), num_classes=10)
    split = data.splits["train"]
    preprocess = Preprocess(size=(28, 28), resize=28, mean=data.mean, std=data.std)
    one = np.flatnonzero(split.labels == split.labels[0])[:20]
    chosen, described = calibration.choose(data, preprocess, 64)
    assert described.classes == 10
    calibration.check(chosen, described, 10)
    assert capsys.readouterr().err == ""
    alone = Verification(split=split, indices=one, preprocess=preprocess)
    import msgspec

    calibration.check(alone, msgspec.structs.replace(described, images=len(one), classes=1), 10)
    assert "all 20 calibration images are of one class" in capsys.readouterr().err


def test_divergence_is_kullback_and_leiblers() -> None:
    p, q = np.array([[0.5, 0.25, 0.25]]), np.array([[0.25, 0.5, 0.25]])
    assert parity.divergence(np.log(p), np.log(q)) == pytest.approx(0.25 * np.log(2))
    assert parity.divergence(np.log(p), np.log(p) + 7) == pytest.approx(0)


def test_methods_give_different_files(tmp_path: Path) -> None:
    """On a real quantized graph each method sets other scales, and the same images give the same bytes."""
    import torch

    from export.exporters import Request, write_onnx

    checkpoint = random_checkpoint(tmp_path, "simplecnn")
    from trainers.checkpoint import load_model

    source = tmp_path / "source.onnx"
    module = load_model(checkpoint, tmp_path / "simplecnn").eval()
    write_onnx("eager", module, source, Request(input_shape=checkpoint.input_shape, batch=None, opset=20))
    images = torch.randn(32, *checkpoint.input_shape).numpy()
    images.reshape(-1)[::1001] *= 10  # rare outliers, which minmax keeps and entropy clips
    written = {}
    for method in (*METHODS, "minmax"):
        path = tmp_path / f"{method}.onnx"
        convert("int8", source, path, Conversion(target="cpu", images=lambda: iter([images]), method=method))
        assert written.get(method, path.read_bytes()) == path.read_bytes()
        written[method] = path.read_bytes()
    assert len(set(written.values())) == len(METHODS)


def test_entropy_for_openvino_is_refused_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason="install the openvino extra to be refused for the method")
    expect_refusal(
        "export", "simplecnn", "--quantize", "--target", "openvino", "--calibration-method", "entropy",
        "--artifacts", tmp_path, says="choose minmax, percentile or auto",
    )  # fmt: skip

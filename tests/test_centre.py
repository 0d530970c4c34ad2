"""Lopsided activations are shifted, the function stays, and int8 loses less."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx.reference
import onnxruntime
import pytest

from export.precision import Conversion, convert, int8
from export.precision.centre import centre

NET = """
<ir_version: 10, opset_import: ["" : 20]>
net (float[N,3,8,8] images) => (float[N,5] logits) {
    [expand] wide = Conv <pads = [1, 1, 1, 1]> (images, w1, b1)
    [gelu] curved = Gelu (wide)
    [project] narrow = Conv (curved, w2)
    [again] more = Gelu (narrow)
    [padded] mixed = Conv <pads = [1, 1, 1, 1]> (more, w3)
    [relu] positive = Relu (mixed)
    [pointwise] last = Conv (positive, w4)
    [silu] gate = Sigmoid (last)
    [product] swished = Mul (last, gate)
    [pool] pooled = GlobalAveragePool (swished)
    [flat] row = Flatten (pooled)
    [head] logits = Gemm <transB = 1> (row, w5, b5)
}
"""
SHAPES = {
    "w1": (16, 3, 3, 3), "b1": (16,), "w2": (8, 16, 1, 1), "w3": (8, 8, 3, 3), "w4": (12, 8, 1, 1), "w5": (5, 12),
    "b5": (5,),
}  # fmt: skip

TOKENS = """
<ir_version: 10, opset_import: ["" : 20]>
tokens (float[N,6,8] images) => (float[N,6,K] logits)
    <float[8,16] w1 = {WEIGHT1}, float[16,5] w2 = {WEIGHT2}, float[5] b2 = {1, 2, 3, 4, 5}, float[6,5] b3 = {BIAS}>
{
    [expand] wide = MatMul (images, w1)
    [gelu] curved = Gelu (wide)
    [project] narrow = MatMul (curved, w2)
    [last] logits = LAST
}
"""


@pytest.fixture
def net() -> onnx.ModelProto:
    """Its weights are whole numbers of steps, so that int8 leaves them as they are."""
    model, rng = onnx.parser.parse_model(NET), np.random.default_rng(0)
    for name, shape in SHAPES.items():
        steps = rng.integers(-127, 128, shape)
        steps.reshape(shape[0], -1)[:, 0] = 127
        model.graph.initializer.append(onnx.numpy_helper.from_array((steps / 127).astype(np.float32), name))
    return model


def images(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(64, 3, 8, 8)).astype(np.float32)


def run(model: onnx.ModelProto, *outputs: str) -> list[np.ndarray]:
    own = onnx.ModelProto()
    own.CopyFrom(model)
    own.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in outputs if name != "logits")
    session = onnxruntime.InferenceSession(own.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(outputs, {"images": images()})


def test_what_is_taken_from_an_activation_is_given_back(net: onnx.ModelProto) -> None:
    names = ("images", "curved", "more", "positive", "row")
    found = dict(zip(names, run(net, *names), strict=True))
    ranges = {name: (x.min(), x.max()) for name, x in found.items()}
    before = run(net, "logits")[0]
    after = centre(net, ranges, ("Conv", "Gemm"), ())
    shifted = {name for name in after if name.endswith("/centred")}
    assert "curved/centred" in shifted, "GELU before a convolution without padding"
    assert not {"more/centred", "positive/centred"} & shifted, "zeros around an image are no shifted ones; ReLU"
    low, high = after["curved/centred"]
    assert low == pytest.approx(-high)
    assert after["curved"] == ranges["curved"]
    onnx.checker.check_model(net, full_check=True)
    assert np.abs(run(net, "logits")[0] - before).max() < 1e-4 * before.std()


def tokens(last: str) -> onnx.ModelProto:
    """Tokens times matrices of whole numbers of steps, with this last node."""
    rng, text = np.random.default_rng(0), TOKENS.replace("LAST", last)
    for name, shape in (("WEIGHT1", (8, 16)), ("WEIGHT2", (16, 5)), ("BIAS", (6, 5))):
        steps = rng.integers(-127, 128, shape)
        steps[0] = 127
        text = text.replace(name, ", ".join(f"{step / 127:.9f}" for step in steps.flat))
    return onnx.parser.parse_model(text)


@pytest.mark.parametrize("last", ["Add (narrow, b2)", "Add (b2, narrow)"])
def test_a_matrix_product_gives_back_in_the_sum_after_it(last: str) -> None:
    model, x = tokens(last), np.random.default_rng(1).normal(size=(4, 6, 8)).astype(np.float32)
    before = onnx.reference.ReferenceEvaluator(model).run(["logits"], {"images": x})[0]
    ranges = centre(model, {"curved": (np.float32(-0.17), np.float32(6))}, ("MatMul",), ())
    assert list(ranges) == ["curved", "curved/centred"]
    onnx.checker.check_model(model, full_check=True)
    assert model.graph.node[3].input[:] == ["curved/centred", "w2"]
    after = onnx.reference.ReferenceEvaluator(model).run(["logits"], {"images": x})[0]
    assert np.abs(after - before).max() < 1e-4 * before.std()


@pytest.mark.parametrize("last", ["Add (narrow, b3)", "Mul (narrow, b2)", "Add (narrow, narrow)", "Identity (narrow)"])
def test_a_matrix_product_without_a_bias_stays(last: str) -> None:
    model = tokens(last)
    before = model.SerializeToString()
    centre(model, {"curved": (np.float32(-0.17), np.float32(6))}, ("MatMul",), ())
    assert model.SerializeToString() == before


def test_a_reader_kept_in_float_reads_what_it_did(net: onnx.ModelProto) -> None:
    ranges = {"curved": (np.float32(-0.17), np.float32(6))}
    assert centre(net, ranges, ("Conv", "Gemm"), ("project",)) == ranges
    assert centre(net, ranges, ("Gemm",), ()) == ranges


def test_int8_loses_less(net: onnx.ModelProto, tmp_path: Path) -> None:
    """Of all that is rounded on the way to `narrow`, GELU's values are a large part."""
    plain, quantized = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    del net.graph.node[3:]
    net.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("narrow", 1, ["N", 8, 8, 8]))
    onnx.save(net, plain)
    expected = run(net, "narrow")[0]
    errors = {}
    for centred in (False, True):
        conversion = Conversion(target="tensorrt", images=lambda: iter([images(2)]))
        int8.quantize(plain, quantized, conversion, centred=centred)
        made = onnx.load(quantized)
        errors[centred] = (run(made, "narrow")[0] - expected).std()
        assert any(node.op_type == "Sub" for node in made.graph.node) == centred
    assert errors[True] < 0.75 * errors[False]
    convert("int8", plain, tmp_path / "chosen.onnx", conversion)
    assert (tmp_path / "chosen.onnx").read_bytes() == quantized.read_bytes(), "what TensorRT gets is the centred one"

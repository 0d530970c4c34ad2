"""Costs: the profile's record, estimates by precision, and what int8 saves."""

from __future__ import annotations

from pathlib import Path

import msgspec
import onnx
import pytest

from export.costs import BANDWIDTH, RATES, Costs, LayerCost, estimate, load_costs, savings
from trainers.manifest import UserError, environment, sha256

BLOCK = """
<ir_version: 10, opset_import: ["" : 20]>
block (float[batch, 64, 56, 56] x) => (float[batch, 64, 56, 56] y)
<float[64, 1, 7, 7] depth, float[64, 64, 1, 1] point>
{
    [deep] d = Conv <group = 64, pads = [3, 3, 3, 3]> (x, depth)
    [mixed] m = Conv (d, point)
    [shape] s = Identity (m)
    [sum] y = Add (s, x)
}
"""


@pytest.fixture
def block() -> onnx.ModelProto:
    """A depthwise convolution, a 1x1, a layer that only renames, and an addition."""
    model = onnx.parser.parse_model(BLOCK)
    for name, shape in (("depth", (64, 1, 7, 7)), ("point", (64, 64, 1, 1))):
        count = shape[0] * shape[1] * shape[2] * shape[3]
        model.graph.initializer.append(onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, shape, [0.5] * count))
    return model


def profile(file: Path, **seconds: float) -> Costs:
    rows = tuple(LayerCost(name=name, operator="Conv", precision="fp32", seconds=s) for name, s in seconds.items())
    return Costs(sha256=sha256(file), engine="onnxruntime", device="cpu", threads=1, batch=1, layers=rows,
                 environment=environment())  # fmt: skip


def test_estimates_are_the_longer_of_arithmetic_and_traffic(block: onnx.ModelProto) -> None:
    made = estimate(block)
    assert list(made) == ["deep", "mixed", "sum"]
    pixels = 64 * 56 * 56
    assert made["mixed"]["fp32"] == pytest.approx(2 * 64 * pixels / RATES["fp32"])
    assert made["mixed"]["int8"] == pytest.approx(2 * 64 * pixels / RATES["int8"])
    assert made["sum"]["fp32"] == pytest.approx(3 * pixels * 4 / BANDWIDTH)
    assert made["sum"]["fp16"] == pytest.approx(3 * pixels * 2 / BANDWIDTH)
    assert made["deep"]["int8"] == pytest.approx(2 * 49 * pixels / RATES["fp32"]), "no sum over channels: no faster"


def test_estimates_grow_with_the_batch(block: onnx.ModelProto) -> None:
    one, eight = estimate(block), estimate(block, 8)
    assert eight["sum"]["fp32"] == pytest.approx(8 * one["sum"]["fp32"])


def test_savings_say_what_they_rest_on(block: onnx.ModelProto, tmp_path: Path) -> None:
    file = tmp_path / "block.onnx"
    onnx.save(block, file)
    guessed = savings(block)
    assert guessed["mixed"].seconds > 0
    assert all(saving.estimated for saving in guessed.values())

    before = profile(file, deep=3.0, mixed=4.0)
    scaled = savings(block, before)
    made = estimate(block)["mixed"]
    assert scaled["mixed"].seconds == pytest.approx(4.0 * (1 - made["int8"] / made["fp32"]))
    assert scaled["mixed"].estimated
    assert scaled["sum"].seconds == 0, "fused into another layer, which has its time"

    both = savings(block, (before, profile(file, deep=5.0, mixed=1.5)))
    assert (both["mixed"].seconds, both["mixed"].estimated) == (2.5, False)
    assert both["deep"].seconds == -2.0, "slower in int8"
    assert both["sum"].estimated


def test_profiles_taken_in_different_ways_are_not_compared(block: onnx.ModelProto, tmp_path: Path) -> None:
    file = tmp_path / "block.onnx"
    onnx.save(block, file)
    before = profile(file, mixed=1.0)
    with pytest.raises(UserError, match="differ in threads \\(1 and 2\\)"):
        savings(block, (before, msgspec.structs.replace(before, threads=2)))


def test_a_profile_belongs_to_its_file(block: onnx.ModelProto, tmp_path: Path) -> None:
    file, record = tmp_path / "block.onnx", tmp_path / "costs.json"
    onnx.save(block, file)
    profile(file, mixed=1.0).save(record)
    assert load_costs(record, file).seconds() == {"mixed": 1.0}

    block.producer_name = "another"
    onnx.save(block, file)
    with pytest.raises(UserError, match="profile of another file"):
        load_costs(record, file)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_times_that_are_none_are_refused(block: onnx.ModelProto, tmp_path: Path, seconds: float) -> None:
    file, record = tmp_path / "block.onnx", tmp_path / "costs.json"
    onnx.save(block, file)
    profile(file, mixed=1.0).save(record)
    record.write_text(
        record.read_text().replace(
            '"seconds": 1.0', f'"seconds": {seconds}'.replace("nan", "NaN").replace("inf", "Infinity")
        )
    )
    with pytest.raises(UserError, match="not a number of seconds"):
        load_costs(record, file)

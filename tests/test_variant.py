"""Variants: every one has its own name, and the plans hold what the command line promises."""

from __future__ import annotations

import importlib.util

import pytest

from export.activations import ACTIVATIONS
from export.exporters import EXPORTERS
from export.plan import Wish, plan, plan_trained
from export.rewrites import REWRITES, default
from export.variant import Calibration, Variant, usual_rewrites, within
from trainers.manifest import UserError


@pytest.mark.parametrize("has_gelu", [True, False])
def test_no_two_variants_of_the_grid_share_a_name(has_gelu: bool) -> None:
    variants = [
        variant
        for batch in (None, 1, 8)
        for opset in (18, 20)
        for variant in plan(Wish(grid=True, batch=batch, opset=opset), has_gelu)
    ]
    different = set(variants)
    assert len({variant.name("m") for variant in different}) == len(different)


def test_the_name_says_what_differs() -> None:
    assert Variant().name("convnext") == "convnext-dynamo-exact-fp32"
    usual = usual_rewrites("int8", "tensorrt")
    full = Variant(
        exporter="eager", gelu="tanh", precision="int8", target="tensorrt", batch=4, opset=18,
        rewrites=within(usual, "eager", 18),
    )  # fmt: skip
    assert full.name("convnext") == "convnext-eager-tanh-int8-tensorrt-b4-opset18"


def test_nothing_that_needs_a_higher_opset_is_done_to_a_file_that_was_asked_for_in_a_lower_one() -> None:
    variants = plan(Wish(precisions=("int8",), opset=17), has_gelu=True)
    assert not any("fuse-gelu" in variant.rewrites for variant in variants)
    assert "fuse-gelu" in plan(Wish(precisions=("int8",)), has_gelu=True)[-1].rewrites
    with pytest.raises(UserError, match="bf16 needs opset 22"):
        plan(Wish(precisions=("bf16",), opset=17), has_gelu=False)
    low = {variant.precision for variant in plan(Wish(all=True, opset=17), has_gelu=False)}
    assert not low & {"bf16", "fp8"}
    assert any(variant.precision == "bf16" for variant in plan(Wish(all=True), has_gelu=False))


def test_the_plan_and_the_modules_agree_on_opsets() -> None:
    """The plan imports neither onnx nor the modules that write with it."""
    from export.rewrites import fuse_gelu, fuse_layernorm

    assert REWRITES["fuse-gelu"].opset == fuse_gelu.OPSET
    assert REWRITES["fuse-layernorm"].opset == fuse_layernorm.OPSET


def test_all_changes_one_factor_at_a_time() -> None:
    names = [variant.name("convnext") for variant in plan(Wish(all=True), has_gelu=True)]
    assert len(names) == len(set(names)) == 18 + (importlib.util.find_spec("nncf") is not None)
    expected = [f"convnext-{exporter}-exact-fp32" for exporter in EXPORTERS]
    expected += [f"convnext-dynamo-{gelu}-{precision}" for gelu in ACTIVATIONS for precision in ("fp32", "int8")]
    expected += [f"convnext-dynamo-exact-{precision}" for precision in ("fp16", "bf16", "int8", "int8-dynamic")]
    expected += [f"convnext-dynamo-exact-{precision}-tensorrt" for precision in ("int8", "int8-fp16", "fp8")]
    assert set(expected) <= set(names)


def test_int8_may_be_placed_for_two_engines() -> None:
    variants = plan(Wish(precisions=("int8", "fp16"), beside=("openvino",)), has_gelu=False)
    assert [variant.name("m") for variant in variants] == [
        "m-torch-exact-fp32", "m-dynamo-exact-fp32", "m-dynamo-exact-int8", "m-dynamo-exact-int8-openvino",
        "m-dynamo-exact-fp16",
    ]  # fmt: skip


def test_a_precision_with_one_engine_is_placed_for_it_whatever_the_target() -> None:
    variants = plan(Wish(precisions=("int8", "fp8"), target="openvino", input_dtype="uint8"), has_gelu=False)
    assert [variant.name("m") for variant in variants] == [
        "m-torch-exact-fp32", "m-dynamo-exact-fp32-uint8", "m-dynamo-exact-int8-openvino-uint8",
        "m-dynamo-exact-fp8-tensorrt-uint8",
    ]  # fmt: skip
    with pytest.raises(UserError, match="float32 input"):
        plan(Wish(exporter="torch", input_dtype="uint8"), has_gelu=False)


def test_a_calibration_method_is_part_of_the_name() -> None:
    how = Calibration(method="entropy", images=8, source="s", sha256="")
    assert (
        Variant(precision="int8", target="cpu", rewrites=default("cpu"), calibration=how)
        .name("m")
        .endswith("int8-entropy")
    )


def test_a_model_without_gelu_has_no_gelu_variants() -> None:
    assert {variant.gelu for variant in plan(Wish(all=True), has_gelu=False)} == {"exact"}
    with pytest.raises(UserError, match="no GELU"):
        plan(Wish(gelu="tanh"), has_gelu=False)


def test_the_baselines_come_with_every_export() -> None:
    names = [variant.name("m") for variant in plan(Wish(exporter="eager", precisions=("int8",)), has_gelu=False)]
    assert names == ["m-torch-exact-fp32", "m-dynamo-exact-fp32", "m-eager-exact-fp32", "m-eager-exact-int8"]


def test_a_checkpoint_trained_for_int8_has_one_form() -> None:
    (variant,) = plan_trained(Wish(batch=4, precisions=("int8-qat",)), None)
    assert variant.name("m") == "m-dynamo-exact-int8-qat-tensorrt-b4"
    assert "int8-qat" not in {variant.precision for variant in plan(Wish(grid=True), has_gelu=True)}
    with pytest.raises(UserError, match="leave --grid out"):
        plan_trained(Wish(grid=True), None)

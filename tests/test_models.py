"""Contract of every model: a SPEC that builds, counts and takes its own input."""

from __future__ import annotations

import pytest
import torch

from trainers import data, models
from trainers.manifest import UserError
from trainers.spec import ModelSpec, Recipe


def build(spec: ModelSpec, **options: object) -> torch.nn.Module:
    merged = {**spec.options, **options}
    return spec.build(num_classes=spec.num_classes, input_shape=spec.shape(merged), **merged)


@pytest.mark.parametrize("name", models.names())
def test_every_model_keeps_its_contract(name: str) -> None:
    spec = models.get(name)
    assert spec.dataset in data.names()
    assert spec.dataset in spec.recipes
    assert "synthetic" in spec.recipes
    module = build(spec).eval()
    with torch.inference_mode():
        logits = module(torch.randn(2, *spec.input_shape))
    assert logits.shape == (2, spec.num_classes)
    assert logits.std() > 0


def test_convnext_has_the_owners_parameter_count() -> None:
    assert sum(p.numel() for p in build(models.get("convnext")).parameters()) == 18_166_472


def test_convnext_follows_its_image_size() -> None:
    module = build(models.get("convnext"), size=64)
    assert module(torch.zeros(1, 3, 64, 64)).shape == (1, 200)
    with pytest.raises(UserError, match="multiples of 32"):
        build(models.get("convnext"), size=50)


@pytest.mark.parametrize("blocks", ["1,1,1", "3,3,9,0", "3, 3,9,3", "", "a,b,c,d"])
def test_convnext_has_four_stages(blocks: str) -> None:
    assert sum(p.numel() for p in build(models.get("convnext"), size=32, blocks="1,1,1,1").parameters()) == 2_348_168
    with pytest.raises(UserError, match="as in 3,3,9,3"):
        build(models.get("convnext"), blocks=blocks)


def test_simplecnn_is_one_convolution_and_one_linear() -> None:
    kinds = [type(part).__name__ for part in build(models.get("simplecnn")).children()]
    assert kinds == ["Conv2d", "ReLU", "Linear"]


def test_resnet18_has_a_cifar_stem() -> None:
    module = build(models.get("resnet18"), stem="cifar")
    assert module.conv1.kernel_size == (3, 3)
    assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"stemm": "cifar"}, "did you mean stem"),
        ({"lr": "fast"}, "Expected `float`"),
        ({"stem": "3"}, "expected str"),
        ({"epochs": "0"}, "must be above 0"),
        ({"warmup": "1.5"}, r"\[0, 1\)"),
        ({"precision": "int4"}, "Invalid enum value"),
    ],
)
def test_a_wrong_setting_gets_one_line(settings: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        models.get("resnet18").configure(settings, Recipe())


def test_settings_reach_model_and_recipe() -> None:
    options, recipe = models.get("convnext").configure({"size": "64", "lr": "1"}, Recipe())
    assert options == {"size": 64, "blocks": "3,3,9,3"}
    assert recipe.lr == 1.0

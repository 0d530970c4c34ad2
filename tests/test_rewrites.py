"""Rewrites for training compute what the plain module computes, forward and backward, under the same names."""

from __future__ import annotations

import copy

import pytest
import torch

from trainers import models
from trainers.manifest import UserError
from trainers.rewrites import REWRITES, live_taps, rewrite, selected

SIZES = {"convnext": {"size": 64}, "resnet18": {}, "simplecnn": {}}
SWAPPED = {
    "convnext": {"small-maps": 15, "live-taps": 3, "map-norm": 22},
    "resnet18": {"small-maps": 3 + 1 + 3, "live-taps": 4},
}


def build(name: str) -> tuple[torch.nn.Module, tuple[int, int, int]]:
    spec = models.get(name)
    options = {**spec.options, **SIZES[name]}
    torch.manual_seed(0)
    shape = spec.shape(options)
    return spec.build(num_classes=spec.num_classes, input_shape=shape, **options), shape


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("kind", [*REWRITES, "all"])
def test_function_and_gradients_are_those_of_the_plain_module(name: str, kind: str) -> None:
    plain, shape = build(name)
    plain = plain.double().to(memory_format=torch.channels_last)
    fast = copy.deepcopy(plain)
    count = rewrite(fast.float(), shape, selected(kind))
    if kind != "all":
        assert count == SWAPPED.get(name, {}).get(kind, 0)
    fast.double()
    x = torch.randn(3, *shape, dtype=torch.float64)
    for module in (plain, fast):
        module(x).square().sum().backward()
    torch.testing.assert_close(fast(x), plain(x), rtol=1e-9, atol=1e-9)
    for (path, expected), actual in zip(plain.named_parameters(), fast.parameters(), strict=True):
        whole = expected.grad
        if actual.shape != expected.shape:  # the live window of a kernel: outside it the gradient is zero
            window = fast.get_submodule(path.rpartition(".")[0]).window
            torch.testing.assert_close(actual.grad.norm(), whole.norm())
            whole = whole[window]
        torch.testing.assert_close(actual.grad, whole, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", models.names())
def test_the_state_dict_stays_the_plain_one(name: str) -> None:
    plain, shape = build(name)
    fast = copy.deepcopy(plain)
    rewrite(fast, shape, list(REWRITES))
    kept = fast.state_dict()
    assert list(kept) == list(plain.state_dict())
    for path, tensor in plain.state_dict().items():
        assert torch.equal(kept[path], tensor), path
    changed = {path: torch.randn_like(t) if t.is_floating_point() else t + 1 for path, t in kept.items()}
    fast.load_state_dict(changed)
    for path, tensor in fast.state_dict().items():
        assert torch.equal(tensor, changed[path]), path


def test_live_taps() -> None:
    assert live_taps(1, 3, 1, 1) == (1, 2, 0, 0)  # one pixel meets the centre only
    assert live_taps(2, 3, 2, 1) == (1, 3, 0, 0)
    assert live_taps(2, 7, 1, 3) == (2, 5, 1, 1)
    assert live_taps(8, 3, 1, 1) == (0, 3, 1, 1)
    for size, kernel, stride, padding in ((5, 7, 1, 3), (2, 5, 2, 2), (1, 7, 2, 3)):
        conv = torch.nn.Conv2d(1, 1, kernel, stride, padding, bias=False).double()
        x = torch.randn(1, 1, size, size, dtype=torch.float64)
        first, end, before, after = live_taps(size, kernel, stride, padding)
        padded = torch.nn.functional.pad(x, (before, after, before, after))
        cut = torch.nn.functional.conv2d(padded, conv.weight[:, :, first:end, first:end], stride=stride)
        torch.testing.assert_close(cut, conv(x))


def test_an_unknown_rewrite_gets_one_line() -> None:
    with pytest.raises(UserError, match="did you mean live-taps"):
        selected("live-tap")


class Shared(torch.nn.Module):
    """One convolution at two sizes, one in two places, and two with the same weight."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.here = self.there = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.one, self.other = torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.Conv2d(3, 3, 3, padding=1)
        self.other.weight = self.one.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.twice(self.twice(x).mean((2, 3), keepdim=True))
        return self.other(self.one(self.there(self.here(x)))).flatten(1)


def test_what_is_shared_is_left_alone() -> None:
    module = Shared()
    assert rewrite(module, (3, 8, 8), list(REWRITES)) == 0

"""The optimizer and its learning rate."""

from __future__ import annotations

import math
from typing import Any

from torch import nn, optim

from trainers.spec import Recipe

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


def is_norm(part: nn.Module) -> bool:
    """Whether a module is a norm, or was one before it was traced."""
    return isinstance(part, NORMS) or getattr(part, "was_norm", False)


def make_optimizer(module: nn.Module, recipe: Recipe, *, fused: bool = True) -> optim.Optimizer:
    """An optimizer that decays weights, but neither norms nor biases; without `fused` it is as PyTorch makes it."""
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    seen: set[nn.Parameter] = set()  # a tied parameter has more than one place
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if parameter in seen:
                continue
            seen.add(parameter)
            (spared if is_norm(part) or name == "bias" else decayed).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": spared, "weight_decay": 0.0}]
    if recipe.optimizer == "sgd":
        return optim.SGD(
            groups,
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.momentum > 0,
            weight_decay=recipe.weight_decay,
            fused=False if recipe.shard else fused or None,  # PyTorch has no fused SGD for shards
        )
    return optim.AdamW(groups, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=fused or None)


def learning_rate(recipe: Recipe, step: float, steps: int) -> float:
    """The rate at `step` of `steps`: up to `recipe.lr` during the warm-up, then down by the schedule.

    `cosine` and `linear` rise from zero in a straight line and fall to zero; `constant` stays at the peak; `onecycle`
    rises from lr/25 and falls to lr/10,000, both along a cosine (Smith and Topin, 2018, as PyTorch's OneCycleLR).
    A function of the step alone, so that a resumed run needs no scheduler state.
    """
    rise = max(1, round(recipe.warmup * steps))
    if recipe.schedule == "onecycle":
        low, last = recipe.lr / 25, recipe.lr / 1e4
        if step < rise:
            return low + (recipe.lr - low) * _ease(step / rise)
        return recipe.lr + (last - recipe.lr) * _ease((step - rise) / max(1, steps - rise - 1))
    if step < rise:
        return recipe.lr * (step + 1) / rise
    if recipe.schedule == "constant":
        return recipe.lr
    share = (step - rise) / max(1, steps - rise)
    return recipe.lr * (1 - (share if recipe.schedule == "linear" else _ease(share)))


def _ease(share: float) -> float:
    """From 0 to 1 along half a cosine."""
    return 0.5 * (1 - math.cos(math.pi * share))

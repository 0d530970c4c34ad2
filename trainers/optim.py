"""The optimizer and its learning rate."""

from __future__ import annotations

import math
from typing import Any

from torch import nn, optim

from trainers.spec import Recipe

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


def make_optimizer(module: nn.Module, recipe: Recipe) -> optim.Optimizer:
    """A fused optimizer that decays weights, but neither norms nor biases."""
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            (spared if isinstance(part, NORMS) or name == "bias" else decayed).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": spared, "weight_decay": 0.0}]
    if recipe.optimizer == "sgd":
        return optim.SGD(
            groups,
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.momentum > 0,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
    return optim.AdamW(groups, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Linear warm-up to `recipe.lr`, then a cosine to zero: one cycle over `steps` (after Smith, 2018).

    A function of the step alone, so that a resumed run needs no scheduler state.
    """
    rise = max(1, round(recipe.warmup * steps))
    if step < rise:
        return recipe.lr * (step + 1) / rise
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

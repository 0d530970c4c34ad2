"""GELU and what may stand in for it. A row here is a choice of `--gelu`; torch is imported when one is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from trainers.manifest import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn


def _exact() -> nn.Module:
    from torch import nn

    return nn.GELU()


def _tanh() -> nn.Module:
    from torch import nn

    return nn.GELU(approximate="tanh")


def _sigmoid() -> nn.Module:
    from torch import nn

    class SigmoidGELU(nn.Module):
        """x * sigmoid(1.702 x): Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016), section 2."""

        def forward(self, x: Tensor) -> Tensor:
            return x * (1.702 * x).sigmoid()

    return SigmoidGELU()


def _hardswish() -> nn.Module:
    from torch import nn

    return nn.Hardswish()


def _relu() -> nn.Module:
    from torch import nn

    return nn.ReLU()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "exact": _exact,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "hardswish": _hardswish,
    "relu": _relu,
}


def has_gelu(module: nn.Module) -> bool:
    """Whether the module has an exact GELU."""
    return any(is_gelu(part) for part in module.modules())


def swap_gelu(module: nn.Module, name: str) -> nn.Module:
    """Replace every exact GELU in place and return the module. Raises UserError when there is none to replace."""
    if name == "exact":
        return module
    if not has_gelu(module):
        raise UserError(f"--gelu {name}: this model has no GELU; leave --gelu out")
    for parent in list(module.modules()):
        for child_name, child in parent.named_children():
            if is_gelu(child):
                setattr(parent, child_name, ACTIVATIONS[name]())
    return module


def is_gelu(module: nn.Module) -> bool:
    """Whether a module is an exact GELU."""
    from torch import nn

    return isinstance(module, nn.GELU) and module.approximate == "none"

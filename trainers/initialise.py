"""The weights a run starts from, by `--set init=NAME`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import init

INITIALISATIONS: dict[str, Callable[[Tensor], object]] = {
    "kaiming": lambda weight: init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu"),  # He et al., 2015
    "xavier": init.xavier_uniform_,  # Glorot and Bengio, 2010
    "trunc_normal": lambda weight: init.trunc_normal_(weight, std=0.02),  # as ConvNeXt, Liu et al., 2022
}


def initialise(module: nn.Module, name: str) -> None:
    """Draw convolution and linear weights anew and set their biases to zero; `default` leaves the model's own."""
    if name == "default":
        return
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            INITIALISATIONS[name](part.weight)
            if part.bias is not None:
                init.zeros_(part.bias)

"""GELU and what may stand in for it. A row here is a choice of `--gelu`; torch is imported when one is made.

Besides the rows there is the user's own: `FILE.py:NAME`, a function Tensor -> Tensor or a torch.nn.Module class. It is
known as `FILE.py:NAME@HASH`, so that a changed file is another activation, and runs only where a command line named it.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

from trainers import external
from trainers.cli import choose
from trainers.manifest import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

EXACT = "exact"


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
    EXACT: _exact,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "hardswish": _hardswish,
    "relu": _relu,
}


def parse(text: str) -> str:
    """The activation that the command line names, as variants hold it; a file's may be run from now on.

    Raises UserError when there is none such, or when it is no activation. Pass only what comes from the command line.
    """
    if text.endswith(".py"):
        raise UserError(f"--gelu {text}: which of its functions? write {text}:NAME")
    if not external.is_file(text):
        return choose(text, ACTIVATIONS, "activation")
    plain = external.allow(text)
    name = f"{plain}@{_digest(plain)}"
    _try_out(make(name), plain)
    return name


def shown(name: str) -> str:
    """An activation's name for people: without the hash."""
    return name.partition("@")[0]


def make(name: str) -> nn.Module:
    """The activation as a module. Raises UserError when it is unknown, or code that was not named here."""
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]()
    plain, _, digest = name.partition("@")
    if not external.is_file(plain):
        choose(name, ACTIVATIONS, "activation")
    found = external.named(plain, "--gelu (of runtime: --model)")
    if digest != _digest(plain):
        raise UserError(f"{plain} is not as it was when this was made; make it again with: --gelu PATH/{plain}")
    return _module(found, plain)


def has_gelu(module: nn.Module) -> bool:
    """Whether the module has an exact GELU."""
    return any(is_gelu(part) for part in module.modules())


def swap_gelu(module: nn.Module, name: str) -> nn.Module:
    """Replace every exact GELU in place and return the module. Raises UserError when there is none to replace."""
    if name == EXACT:
        return module
    if not has_gelu(module):
        raise UserError(f"--gelu {shown(name)}: this model has no GELU; leave --gelu out")
    for parent in list(module.modules()):
        for child_name, child in list(parent._modules.items()):  # named_children leaves out a child's second name
            if child is not None and is_gelu(child):
                setattr(parent, child_name, make(name))
    return module


def is_gelu(module: nn.Module) -> bool:
    """Whether a module is an exact GELU, PyTorch's or timm's."""
    from torch import nn

    if isinstance(module, nn.GELU):
        return module.approximate == "none"
    return (type(module).__module__, type(module).__name__) == ("timm.layers.activations", "GELU")


def _digest(plain: str) -> str:
    """What tells one state of the user's file, and one function in it, from another."""
    return hashlib.sha256(plain.encode() + b"\0" + external.source(plain)).hexdigest()[:8]


def _module(found: Callable[..., object], plain: str) -> nn.Module:
    """The user's function or class as a module. Raises UserError where it cannot be one."""
    from torch import nn

    class OwnActivation(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return found(x)  # type: ignore[return-value]  # checked in _try_out

    if isinstance(found, nn.Module):
        module: object = copy.deepcopy(found)
    else:
        module = external.call(plain, found) if inspect.isclass(found) else OwnActivation()
    if not isinstance(module, nn.Module):
        raise UserError(f"{plain} is a class, but not a torch.nn.Module; write a function Tensor -> Tensor or a Module")
    if any(True for _ in module.parameters()):
        raise UserError(f"{plain} has parameters, which no checkpoint holds; write their values into it")
    return module.eval()


def _try_out(module: nn.Module, plain: str) -> None:
    """Raise UserError unless the module gives each element of (N, C, H, W) its own finite value."""
    import torch

    x = torch.linspace(-8, 8, 72).view(2, 3, 4, 3)
    kept = torch.arange(72).view(x.shape) % 7 < 4  # no period that an axis has
    with torch.no_grad():
        y, other = (external.call(plain, module, each.clone()) for each in (x, x.where(kept, 0.25)))
    if not isinstance(y, torch.Tensor):
        raise UserError(f"{plain} gives a {type(y).__name__}, not a tensor; let it return one")
    if y.shape != x.shape or y.dtype != x.dtype:
        raise UserError(
            f"{plain} turns {tuple(x.shape)} {_kind(x)} into {tuple(y.shape)} {_kind(y)}; an activation keeps both"
        )
    if not y.isfinite().all():
        raise UserError(f"{plain} gives {float(y[~y.isfinite()][0])} at x = {float(x[~y.isfinite()][0]):.3g}; mend it")
    if not torch.allclose(y[kept], other[kept], rtol=1e-4, atol=1e-5):
        raise UserError(f"{plain} gives an element another value where its neighbours change; an activation does not")


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")

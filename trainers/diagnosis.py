"""Why a loss stopped being finite: the step, the parameter behind it, and what to try."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn, optim

from trainers.spec import Recipe


class Guard:
    """Freezes a run at its first non-finite loss, without waiting for the device to find out.

    `broken` is the `found_inf` that PyTorch's fused optimizers know from gradient scaling: at 1 they leave weights and
    moments as they are. So whenever the loss is next read, both are still those from before the step that failed, and
    the step itself is counted back from `skipped`. A few scalar operations a step, all on the device.
    """

    def __init__(self, optimizer: optim.Optimizer, device: torch.device, *, freezes: bool) -> None:
        self.broken = torch.zeros((), device=device)
        self.skipped = torch.zeros((), device=device, dtype=torch.float64)
        # A gradient scaler sets its own found_inf, and skips such steps anyway; sharded weights take none.
        if freezes:
            optimizer.found_inf = self.broken  # type: ignore[attr-defined]

    def note(self, loss: Tensor) -> None:
        """Take note of a step's loss, before its optimizer step."""
        torch.maximum(self.broken, (~loss.isfinite()).float(), out=self.broken)
        self.skipped += self.broken


def explain(guard: Guard, module: nn.Module, optimizer: optim.Optimizer, recipe: Recipe, step: int) -> str:
    """One line about a run that the guard froze, seen after `step`."""
    failed = step + 1 - int(guard.skipped.item())
    # Reading sharded weights takes all processes, and only the writer is here.
    cause = "" if recipe.shard else f": {_cause(module, optimizer)}"
    return f"the loss is not finite at step {failed}{cause}; {_advice(recipe)}"


def _cause(module: nn.Module, optimizer: optim.Optimizer) -> str:
    """The parameter with the largest gradient in the steps before, as the optimizer's moments remember them."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    sizes: dict[str, float] = {}
    for parameter, state in optimizer.state.items():
        moment = state.get("exp_avg", state.get("momentum_buffer"))
        if moment is not None and parameter in names:
            sizes[names[parameter]] = _largest(moment)
    # A step on a finite loss can break the weights; without one, they came broken.
    if not any(sizes.values()):
        broken = [name for name, parameter in module.named_parameters() if not math.isfinite(_largest(parameter))]
        return f"{broken[0]} is not finite to begin with" if broken else "the weights are finite, so look at the images"
    name = max(sizes, key=lambda name: sizes[name])
    return f"the largest gradient before it was {name}'s ({sizes[name]:.2g}, averaged over steps)"


def _largest(tensor: Tensor) -> float:
    """The largest magnitude; NaN counts as infinite."""
    return tensor.detach().abs().nan_to_num(nan=math.inf, posinf=math.inf).max().item()


def _advice(recipe: Recipe) -> str:
    tries = [f"--set lr={recipe.lr / 10:.2g}"]
    tries += [] if recipe.clip_norm else ["--set clip_norm=1"]
    tries += [] if recipe.precision == "fp32" else ["--precision fp32"]
    return "train again with " + ", or ".join(tries)

"""Kernels of our own, in Triton, in place of a model's modules: NVIDIA GPUs only."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor, nn

from trainers.manifest import UserError
from trainers.models.convnext import Block


def unusable() -> str | None:
    """Why the kernels cannot run here, or None."""
    if not torch.cuda.is_available():
        return "needs an NVIDIA GPU"
    if importlib.util.find_spec("triton") is None:
        return "needs Triton; pip install triton"
    return None


def fuse(module: nn.Module) -> int:
    """Let every ConvNeXt block norm, widen and activate in one kernel, in place; returns how many blocks do.

    The state dict stays the plain module's. Raises UserError where no kernel can run or nothing can be fused.
    """
    if reason := unusable():
        raise UserError(f"Triton kernels: {reason}; leave them out here")
    found = [(path, part) for path, part in module.named_modules() if _fits(part)]
    if not found:
        raise UserError("Triton kernels: the model has no ConvNeXt block with exact GELU; leave them out")
    for path, part in found:
        parent, _, key = path.rpartition(".")
        assert isinstance(part, Block)
        setattr(module.get_submodule(parent), key, FusedBlock(part))
    return len(found)


def _fits(part: nn.Module) -> bool:
    return type(part) is Block and type(part.gelu) is nn.GELU and part.gelu.approximate == "none"


class FusedBlock(nn.Module):
    """A ConvNeXt block whose norm, 1x1 convolution and GELU are one kernel; (N, dim, H, W) -> same, channels last."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.depthwise, self.norm, self.expand, self.project = block.depthwise, block.norm, block.expand, block.project

    def forward(self, x: Tensor) -> Tensor:
        from trainers.norm_expand_gelu import norm_expand_gelu

        wide = self.depthwise(x).permute(0, 2, 3, 1).contiguous()
        scale, shift = (part.permute(1, 2, 0).contiguous() for part in (self.norm.weight, self.norm.bias))
        assert self.expand.bias is not None, "a ConvNeXt block's convolutions have biases"
        matrix, bias = self.expand.weight.flatten(1).to(wide.dtype), self.expand.bias.to(wide.dtype)
        active, _, _ = norm_expand_gelu(wide, scale, shift, matrix.contiguous(), bias, self.norm.eps)
        return x + self.project(active.permute(0, 3, 1, 2))

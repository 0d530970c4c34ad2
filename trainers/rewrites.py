"""Exact rewrites for training: modules that compute the same function faster, under the same names.

`rewrite` swaps them in place. Each keeps the state dict of the module that it replaces, so weights, checkpoints and
exports never see them. They are made for one image size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.cli import choose

DENSE_POSITIONS = 64  # up to this many pixels a depthwise convolution is faster as a matrix, on the CPUs measured


def selected(text: str) -> list[str]:
    """`all`, `none` or a comma list as names of REWRITES. Raises UserError on an unknown name."""
    if text in ("all", "none"):
        return list(REWRITES) if text == "all" else []
    return [choose(name.strip(), REWRITES, "rewrite") for name in text.split(",")]


def rewrite(module: nn.Module, input_shape: tuple[int, int, int], names: Iterable[str]) -> int:
    """Apply these rewrites in place for images of (channels, height, width); returns how many modules were swapped."""
    names = list(names)
    if not names:
        return 0
    sizes = _input_sizes(module, input_shape)
    swapped = 0
    for name in names:
        for path, part in list(module.named_modules()):
            replacement = REWRITES[name](part, sizes.get(path, (0, 0)))
            if replacement is not None:
                parent, _, key = path.rpartition(".")
                setattr(module.get_submodule(parent), key, replacement)
                swapped += 1
    return swapped


class LiveConv2d(nn.Conv2d):
    """A convolution without the taps that only ever meet padding.

    At (height, width) a kernel's outer rows and columns may lie on padding at every position: the output does not
    depend on them and their gradient is zero. The parameter is the live window; the rest waits in `whole`.
    """

    def __init__(self, conv: nn.Conv2d, rows: Taps, columns: Taps) -> None:
        super().__init__(conv.in_channels, conv.out_channels, 1, groups=conv.groups, bias=False)
        self.stride = conv.stride
        self.window = (slice(None), slice(None), slice(*rows[:2]), slice(*columns[:2]))
        self.margins = (columns[2], columns[3], rows[2], rows[3])  # left, right, top, bottom; negative: cut off
        self.kernel_size = (rows[1] - rows[0], columns[1] - columns[0])
        self.whole = conv.weight.detach().clone()
        self.weight = nn.Parameter(_like(conv.weight, self.whole[self.window]))
        self.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        left, right, top, bottom = self.margins
        if left == right >= 0 and top == bottom >= 0:
            return F.conv2d(x, self.weight, self.bias, self.stride, (top, left), 1, self.groups)
        return F.conv2d(F.pad(x, self.margins), self.weight, self.bias, self.stride, 0, 1, self.groups)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        whole = self.whole.to(self.weight.device, copy=True)
        whole[self.window] = self.weight.detach()
        destination[f"{prefix}weight"] = whole

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        key = f"{prefix}weight"
        if key in state_dict and state_dict[key].shape == self.whole.shape:
            self.whole = state_dict[key].detach().clone()
            state_dict[key] = self.whole[self.window]
        super()._load_from_state_dict(state_dict, prefix, *rest)


class DenseDepthwise(nn.Conv2d):
    """A depthwise convolution, with or without a channel multiplier, on a map so small that a matrix is faster.

    Each input channel's (height * width) pixels are multiplied by a matrix that holds its kernels at every position.
    """

    scatter: Tensor  # (taps, pixels * pixels): 1 where a tap joins an input pixel to an output pixel

    def __init__(self, conv: nn.Conv2d, height: int, width: int) -> None:
        super().__init__(conv.in_channels, conv.out_channels, 1, groups=conv.groups, bias=False)
        self.kernel_size, self.padding = conv.kernel_size, conv.padding
        self.weight, self.bias = conv.weight, conv.bias
        self.map = (height, width)
        self.register_buffer("scatter", _scatter(conv, height, width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.map
        pixels, count, channels = height * width, x.shape[0], self.groups
        multiplier = self.out_channels // channels
        kernels = self.weight.reshape(channels, multiplier, -1)
        matrix = torch.matmul(kernels, self.scatter).view(channels, multiplier, pixels, pixels)
        matrix = matrix.transpose(1, 2).reshape(channels, pixels, multiplier * pixels)
        flat = x.permute(1, 0, 2, 3).reshape(channels, count, pixels)
        out = torch.bmm(flat, matrix).view(channels, count, multiplier, height, width)
        # Channels last in memory, as the convolutions around it are.
        out = out.permute(1, 3, 4, 0, 2).reshape(count, height, width, self.out_channels).permute(0, 3, 1, 2)
        return out if self.bias is None else out + self.bias.view(1, -1, 1, 1).to(out.dtype)


class ChannelsLastNorm(nn.LayerNorm):
    """LayerNorm over (C, H, W) that reads a channels-last map as it lies in memory, in the precision it comes in."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__(norm.normalized_shape, norm.eps, elementwise_affine=False)
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_contiguous(memory_format=torch.channels_last):
            return super().forward(x)
        channels, height, width = self.normalized_shape
        weight, bias = (part.permute(1, 2, 0).contiguous() for part in (self.weight, self.bias))
        # Sums are float32 inside; autocast would only add a copy of the map to float32 and one back.
        with torch.autocast(x.device.type, enabled=False):
            out = F.layer_norm(x.permute(0, 2, 3, 1), [height, width, channels], weight, bias, self.eps)
        return out.permute(0, 3, 1, 2)


Taps = tuple[int, int, int, int]  # first live tap, one past the last, padding before, padding after


def live_taps(size: int, kernel: int, stride: int, padding: int) -> Taps:
    """The taps of one axis that meet a pixel of `size` pixels at any output position, and the padding that is left."""
    outputs = (size + 2 * padding - kernel) // stride + 1
    reached = [tap for tap in range(kernel) if any(0 <= o * stride - padding + tap < size for o in range(outputs))]
    first, end = reached[0], reached[-1] + 1
    before = padding - first
    return first, end, before, (outputs - 1) * stride + (end - first) - size - before


def _live(part: nn.Module, size: tuple[int, int]) -> nn.Module | None:
    if not isinstance(part, nn.Conv2d) or type(part) is not nn.Conv2d or not all(size) or not _is_plain(part):
        return None
    rows, columns = (
        live_taps(size[axis], part.kernel_size[axis], part.stride[axis], int(part.padding[axis])) for axis in (0, 1)
    )
    if (rows[1] - rows[0], columns[1] - columns[0]) == part.kernel_size:
        return None
    return LiveConv2d(part, rows, columns)


def _dense(part: nn.Module, size: tuple[int, int]) -> nn.Module | None:
    if not isinstance(part, nn.Conv2d) or type(part) is not nn.Conv2d or not _is_plain(part):
        return None
    same_size = all(part.kernel_size[axis] == 2 * int(part.padding[axis]) + 1 for axis in (0, 1))
    depthwise = 1 < part.groups == part.in_channels and part.stride == (1, 1) and same_size
    return DenseDepthwise(part, *size) if depthwise and 0 < size[0] * size[1] <= DENSE_POSITIONS else None


def _norm(part: nn.Module, size: tuple[int, int]) -> nn.Module | None:
    if not isinstance(part, nn.LayerNorm) or type(part) is not nn.LayerNorm:
        return None
    is_map = len(part.normalized_shape) == 3 and part.elementwise_affine and part.bias is not None
    return ChannelsLastNorm(part) if is_map else None


REWRITES: dict[str, Callable[[nn.Module, tuple[int, int]], nn.Module | None]] = {
    "dense-depthwise": _dense,
    "live-taps": _live,
    "map-norm": _norm,
}


def _is_plain(conv: nn.Conv2d) -> bool:
    return conv.dilation == (1, 1) and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _like(old: Tensor, new: Tensor) -> Tensor:
    """`new` in the memory format of `old`."""
    last = old.is_contiguous(memory_format=torch.channels_last)
    return new.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _scatter(conv: nn.Conv2d, height: int, width: int) -> Tensor:
    """Where each tap joins an input pixel to an output pixel, float32 (taps, pixels * pixels)."""
    rows, columns = conv.kernel_size
    top, left = int(conv.padding[0]), int(conv.padding[1])
    joined = torch.zeros(rows, columns, height, width, height, width)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    for row in range(rows):
        for column in range(columns):
            from_y, from_x = y + row - top, x + column - left
            inside = (from_y >= 0) & (from_y < height) & (from_x >= 0) & (from_x < width)
            joined[row, column, from_y[inside], from_x[inside], y[inside], x[inside]] = 1
    return joined.view(rows * columns, -1).to(conv.weight.device)


@torch.no_grad()
def _input_sizes(module: nn.Module, input_shape: tuple[int, int, int]) -> dict[str, tuple[int, int]]:
    """(height, width) of the map that each convolution reads, by the module's path; unused ones are left out."""
    sizes: dict[str, tuple[int, int]] = {}

    def note(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: sizes.update({path: (inputs[0].shape[2], inputs[0].shape[3])})

    hooks = [
        part.register_forward_pre_hook(note(path))
        for path, part in module.named_modules()
        if isinstance(part, nn.Conv2d)
    ]
    was_training = module.training
    try:
        module.eval()(torch.zeros(1, *input_shape, device=next(module.parameters()).device))
    finally:
        module.train(was_training)
        for hook in hooks:
            hook.remove()
    return sizes

"""Exact rewrites for training: modules that compute the same function faster, under the same names.

`rewrite` swaps them in place. Each keeps the state dict of the module that it replaces, so weights, checkpoints and
exports never see them. They are made for one image size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.cli import choose

# Up to so many pixels of its input map a convolution is faster as a matrix (`benchmarks/rewrites.py`).
DENSE_PIXELS, DEPTHWISE_PIXELS = 4, 64


def selected(text: str) -> list[str]:
    """`all`, `none` or a comma list as names of REWRITES, in its order. Raises UserError on an unknown name."""
    if text in ("all", "none"):
        return list(REWRITES) if text == "all" else []
    asked = {choose(name.strip(), REWRITES, "rewrite") for name in text.split(",")}
    return [name for name in REWRITES if name in asked]


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


class DenseConv2d(LiveConv2d):
    """A convolution on a map so small that one matrix from all its inputs to all its outputs is faster.

    Where most taps meet padding, or where each channel is by itself, the libraries' convolutions have little to do at a
    time; a matrix product has not. The matrix holds the kernels at every position and is made anew at every step.
    """

    scatter: Tensor  # (taps, input pixels * output pixels): 1 where a tap joins the two

    def __init__(self, conv: nn.Conv2d, rows: Taps, columns: Taps, height: int, width: int) -> None:
        super().__init__(conv, rows, columns)
        self.out_height, self.out_width = (
            _outputs(size, conv.kernel_size[axis], conv.stride[axis], int(conv.padding[axis]))
            for axis, size in enumerate((height, width))
        )
        joined = _joined(rows, conv.stride[0], height, self.out_height)[:, None, :, None, :, None]
        joined = joined * _joined(columns, conv.stride[1], width, self.out_width)[None, :, None, :, None, :]
        scatter = joined.reshape(self.weight[0, 0].numel(), -1).to(conv.weight.device)
        self.register_buffer("scatter", scatter, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self._whole(x) if self.groups == 1 else self._by_group(x)
        out = out.permute(0, 3, 1, 2)  # channels last in memory, as the convolutions around it are
        return out if self.bias is None else out + self.bias.view(1, -1, 1, 1).to(out.dtype)

    def _whole(self, x: Tensor) -> Tensor:
        count, channels = x.shape[:2]
        matrix = torch.matmul(self.weight.reshape(self.out_channels * channels, -1), self.scatter)
        matrix = matrix.view(self.out_channels, channels, x[0, 0].numel(), -1).permute(2, 1, 3, 0)
        out = x.permute(0, 2, 3, 1).reshape(count, -1) @ matrix.reshape(x[0].numel(), -1)
        return out.view(count, self.out_height, self.out_width, self.out_channels)

    def _by_group(self, x: Tensor) -> Tensor:
        count, groups, pixels = x.shape[0], self.groups, self.out_height * self.out_width
        kernels = self.weight.reshape(groups, self.out_channels // groups, self.in_channels // groups, -1)
        matrix = torch.matmul(kernels, self.scatter).view(*kernels.shape[:3], x[0, 0].numel(), pixels)
        matrix = matrix.permute(0, 2, 3, 1, 4).reshape(groups, -1, kernels.shape[1] * pixels)
        flat = x.unflatten(1, (groups, -1)).permute(1, 0, 2, 3, 4).reshape(groups, count, -1)
        out = torch.bmm(flat, matrix).view(groups, count, -1, self.out_height, self.out_width)
        return out.permute(1, 3, 4, 0, 2).reshape(count, self.out_height, self.out_width, self.out_channels)


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
    outputs = _outputs(size, kernel, stride, padding)
    reached = [tap for tap in range(kernel) if any(0 <= o * stride - padding + tap < size for o in range(outputs))]
    first, end = reached[0], reached[-1] + 1
    before = padding - first
    return first, end, before, (outputs - 1) * stride + (end - first) - size - before


def _outputs(size: int, kernel: int, stride: int, padding: int) -> int:
    return (size + 2 * padding - kernel) // stride + 1


def _joined(taps: Taps, stride: int, size: int, outputs: int) -> Tensor:
    """float32 (taps, inputs, outputs) of one axis: 1 where a live tap joins an input to an output."""
    first, end, before, _ = taps
    tap, inputs, output = (torch.arange(n) for n in (end - first, size, outputs))
    return (output * stride + tap[:, None, None] - before == inputs[None, :, None]).float()


def _live(part: nn.Module, size: tuple[int, int]) -> nn.Module | None:
    if not isinstance(part, nn.Conv2d) or type(part) is not nn.Conv2d or not all(size) or not _is_plain(part):
        return None
    rows, columns = _taps(part, size)
    if (rows[1] - rows[0], columns[1] - columns[0]) == part.kernel_size:
        return None
    return LiveConv2d(part, rows, columns)


def _dense(part: nn.Module, size: tuple[int, int]) -> nn.Module | None:
    if not isinstance(part, nn.Conv2d) or type(part) is not nn.Conv2d or not all(size) or not _is_plain(part):
        return None
    rows, columns = _taps(part, size)
    depthwise = 1 < part.groups == part.in_channels
    # With fewer taps than pixels the matrix would be mostly zeros.
    most = DEPTHWISE_PIXELS if depthwise else min(DENSE_PIXELS, (rows[1] - rows[0]) * (columns[1] - columns[0]))
    return DenseConv2d(part, rows, columns, *size) if size[0] * size[1] <= most else None


def _taps(conv: nn.Conv2d, size: tuple[int, int]) -> tuple[Taps, Taps]:
    return (
        live_taps(size[0], conv.kernel_size[0], conv.stride[0], int(conv.padding[0])),
        live_taps(size[1], conv.kernel_size[1], conv.stride[1], int(conv.padding[1])),
    )


def _norm(part: nn.Module, size: tuple[int, int]) -> nn.Module | None:
    if not isinstance(part, nn.LayerNorm) or type(part) is not nn.LayerNorm:
        return None
    is_map = len(part.normalized_shape) == 3 and part.elementwise_affine and part.bias is not None
    return ChannelsLastNorm(part) if is_map else None


REWRITES: dict[str, Callable[[nn.Module, tuple[int, int]], nn.Module | None]] = {
    "small-maps": _dense,
    "live-taps": _live,
    "map-norm": _norm,
}


def _is_plain(conv: nn.Conv2d) -> bool:
    return conv.dilation == (1, 1) and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _like(old: Tensor, new: Tensor) -> Tensor:
    """`new` in the memory format of `old`."""
    last = old.is_contiguous(memory_format=torch.channels_last)
    return new.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@torch.no_grad()
def _input_sizes(module: nn.Module, input_shape: tuple[int, int, int]) -> dict[str, tuple[int, int]]:
    """(height, width) of the map that each convolution reads, by its path.

    (0, 0) for one that reads several; those that are not used, or share their weights, are left out.
    """
    sizes: dict[str, tuple[int, int]] = {}

    def note(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            size = (inputs[0].shape[2], inputs[0].shape[3])
            sizes[path] = size if sizes.get(path, size) == size else (0, 0)  # read at two sizes: left as it is

        return hook

    parts = list(module.named_modules(remove_duplicate=False))
    places = Counter(id(part) for _, part in parts)  # a module in two places has to stay one module
    tied = Counter(id(part.weight) for _, part in parts if isinstance(part, nn.Conv2d))
    hooks = [
        part.register_forward_pre_hook(note(path))
        for path, part in parts
        if isinstance(part, nn.Conv2d) and places[id(part)] == tied[id(part.weight)] == 1
    ]
    was_training = module.training
    try:
        module.eval()(torch.zeros(1, *input_shape, device=next(module.parameters()).device))
    finally:
        module.train(was_training)
        for hook in hooks:
            hook.remove()
    return sizes

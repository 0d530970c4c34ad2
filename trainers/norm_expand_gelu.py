"""LayerNorm over a map, 1x1 convolution and exact GELU as one operator in Triton: no map between them is written.

The norm and the GELU of the ConvNeXt are not neighbours, a matrix product lies between them. So the norm is the
product's prologue, applied to each tile as it is loaded, and bias and GELU are its epilogue. Only the mean and the
deviation of each image are computed before, in a pass of their own.

Import this only where Triton is installed. On a CPU it runs under Triton's interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

CHUNK = 4096  # elements whose moments one program takes at a time
ROWS, COLUMNS, DEPTH = 64, 64, 32  # the tile of the product


@triton.jit
def _moments(x, means, squares, size, chunk: tl.constexpr):  # type: ignore[no-untyped-def]
    """The mean, and the sum of squared distances to it, of one chunk of one image; grid (chunks, images)."""
    part, image = tl.program_id(0), tl.program_id(1)
    at = part * chunk + tl.arange(0, chunk)
    inside = at < size
    values = tl.load(x + image.to(tl.int64) * size + at, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(values, 0) / tl.minimum(chunk, size - part * chunk)
    away = tl.where(inside, values - mean, 0.0)
    slot = image * tl.num_programs(0) + part
    tl.store(means + slot, mean)
    tl.store(squares + slot, tl.sum(away * away, 0))


@triton.jit
def _product(  # type: ignore[no-untyped-def]
    x,
    mean,
    rstd,
    scale,
    shift,
    matrix,
    bias,
    out,
    count,
    pixels,
    inputs,
    outputs,
    exact: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    depth: tl.constexpr,
):
    """gelu(norm(x) @ matrix.T + bias) of one tile; x is (count, inputs), a row per pixel of each image."""
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    column = tl.program_id(1) * columns + tl.arange(0, columns)
    within = row < count
    center = tl.load(mean + row // pixels, mask=within, other=0.0)[:, None]
    inverse = tl.load(rstd + row // pixels, mask=within, other=0.0)[:, None]
    start = row.to(tl.int64)[:, None] * inputs
    place = (row % pixels)[:, None] * inputs
    total = tl.zeros((rows, columns), dtype=tl.float32)
    for first in range(0, inputs, depth):
        channel = first + tl.arange(0, depth)
        mask = within[:, None] & (channel < inputs)[None, :]
        tile = tl.load(x + start + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        gain = tl.load(scale + place + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        offset = tl.load(shift + place + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        normed = ((tile - center) * inverse * gain + offset).to(matrix.dtype.element_ty)
        weights = tl.load(
            matrix + column[None, :] * inputs + channel[:, None],
            mask=(channel < inputs)[:, None] & (column < outputs)[None, :],
            other=0.0,
        )
        if exact:
            total += tl.dot(normed, weights, input_precision="ieee")  # no TF32: fp32 means fp32
        else:
            total += tl.dot(normed, weights)
    total += tl.load(bias + column, mask=column < outputs, other=0.0).to(tl.float32)[None, :]
    active = 0.5 * total * (1.0 + tl.erf(total * 0.7071067811865476))
    target = out + row.to(tl.int64)[:, None] * outputs + column[None, :]
    tl.store(target, active.to(out.dtype.element_ty), mask=within[:, None] & (column < outputs)[None, :])


@triton_op("fastform::norm_expand_gelu", mutates_args=())
def norm_expand_gelu(
    x: Tensor, scale: Tensor, shift: Tensor, matrix: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """x (N, H, W, C), scale and shift (H, W, C), matrix (K, C) in x's type, bias (K) -> (N, H, W, K), mean, rstd.

    All are contiguous; mean and rstd are float32 (N), as are all sums.
    """
    images, height, width, inputs = x.shape
    outputs, size = matrix.shape[0], height * width * inputs
    chunks = triton.cdiv(size, CHUNK)
    means = torch.empty(images, chunks, device=x.device, dtype=torch.float32)
    squares = torch.empty_like(means)
    wrap_triton(_moments)[(chunks, images)](x, means, squares, size, CHUNK)
    # Moments of chunks are merged as Chan, Golub and LeVeque (1979) do: no difference of large squares.
    lengths = torch.full_like(means[:1], CHUNK)
    lengths[:, -1] = size - (chunks - 1) * CHUNK
    mean = (means * lengths).sum(1) / size
    variance = (squares + lengths * (means - mean[:, None]).square()).sum(1) / size
    rstd = torch.rsqrt(variance + eps)
    out = torch.empty(images, height, width, outputs, device=x.device, dtype=x.dtype)
    rows = images * height * width
    wrap_triton(_product)[(triton.cdiv(rows, ROWS), triton.cdiv(outputs, COLUMNS))](
        x,
        mean,
        rstd,
        scale,
        shift,
        matrix,
        bias,
        out,
        rows,
        height * width,
        inputs,
        outputs,
        x.dtype == torch.float32,
        ROWS,
        COLUMNS,
        DEPTH,
    )
    return out, mean, rstd


@norm_expand_gelu.register_fake
def _(
    x: Tensor, scale: Tensor, shift: Tensor, matrix: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    moment = x.new_empty(x.shape[0], dtype=torch.float32)
    return x.new_empty(*x.shape[:3], matrix.shape[0]), moment, torch.empty_like(moment)


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, scale, shift, matrix, bias, _ = inputs
    ctx.save_for_backward(x, scale, shift, matrix, bias, *output[1:])


def _backward(ctx, grad, _mean, _rstd):  # type: ignore[no-untyped-def]
    """Computes the normed map and the product again, with PyTorch's operators: the forward pass kept neither."""
    x, scale, shift, matrix, bias, mean, rstd = ctx.saved_tensors
    wide = x.float()
    center, inverse = mean.view(-1, 1, 1, 1), rstd.view(-1, 1, 1, 1)
    normed = ((wide - center) * inverse * scale + shift).to(matrix.dtype)
    before = torch.nn.functional.linear(normed, matrix, bias)
    grad_before = torch.ops.aten.gelu_backward(grad.contiguous(), before).flatten(0, 2)
    grad_normed = (grad_before @ matrix).view_as(x).float()
    grad_x, grad_scale, grad_shift = torch.ops.aten.native_layer_norm_backward(
        grad_normed, wide, list(x.shape[1:]), center, inverse, scale.float(), shift.float(), [True, True, True]
    )
    grad_matrix = grad_before.T @ normed.flatten(0, 2)
    return (
        grad_x.to(x.dtype),
        grad_scale.to(scale.dtype),
        grad_shift.to(shift.dtype),
        grad_matrix,
        grad_before.float().sum(0).to(bias.dtype),
        None,
    )


norm_expand_gelu.register_autograd(_backward, setup_context=_keep)

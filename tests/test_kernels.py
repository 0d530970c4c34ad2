"""The Triton kernels, run by Triton's interpreter on the CPU, against plain PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainers import kernels
from trainers.manifest import UserError
from trainers.models.convnext import Block
from trainers.models.simplecnn import SPEC

PROGRAM = """
import torch
from trainers.kernels import FusedBlock
from trainers.models.convnext import Block
from trainers.norm_expand_gelu import norm_expand_gelu

torch.manual_seed(0)
"""


def interpret(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program of assertions; the interpreter is chosen when a kernel is defined, hence a process of its own."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM + program],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.parametrize(("dim", "side"), [(4, 3), (16, 8), (20, 13)])  # the last: three chunks, and tiles cut off
def test_the_block_and_all_its_gradients_agree_with_float64(dim: int, side: int) -> None:
    done = interpret(f"""
block = Block({dim}, {side})
with torch.no_grad():
    for parameter in block.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)
exact = Block({dim}, {side}).double()
exact.load_state_dict(block.state_dict())
fused = FusedBlock(block)
assert list(fused.state_dict()) == list(block.state_dict())
x = (3 + torch.randn(3, {dim}, {side}, {side})).to(memory_format=torch.channels_last).requires_grad_()
y = x.detach().double().requires_grad_()
pull = torch.randn(3, {dim}, {side}, {side})
out, want = fused(x), exact(y)
assert want.std() > 0.1
torch.testing.assert_close(out.double(), want, rtol=1e-4, atol=1e-4)
(out * pull).sum().backward()
(want * pull).sum().backward()
torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-3, atol=1e-4)
for (name, ours), theirs in zip(block.named_parameters(), exact.parameters(), strict=True):
    scale = theirs.grad.abs().max()
    assert scale > 0, name
    torch.testing.assert_close(ours.grad.double() / scale, theirs.grad / scale, rtol=1e-4, atol=1e-5, msg=name)
""")
    assert done.returncode == 0, done.stderr[-4000:]


def test_half_precision_sums_in_float32() -> None:
    """A far mean and a small deviation: sums of squares in 16 bits, or a difference of them, would be lost.

    float16 only: the interpreter holds bfloat16 as integers and multiplies matrices of them as such (Triton 3.9).
    """
    done = interpret("""
dtype = torch.float16
x = (1 + 0.05 * torch.randn(2, 9, 9, 40)).to(dtype)
scale, shift = torch.randn(9, 9, 40), torch.randn(9, 9, 40)
matrix, bias = (torch.randn(72, 40) / 40**0.5).to(dtype), torch.randn(72).to(dtype)
out, mean, rstd = norm_expand_gelu(x, scale, shift, matrix, bias, 1e-5)
assert out.dtype == dtype
normed = torch.nn.functional.layer_norm(x.double(), [9, 9, 40], scale.double(), shift.double(), 1e-5)
want = torch.nn.functional.gelu(torch.nn.functional.linear(normed, matrix.double(), bias.double()))
torch.testing.assert_close(mean.double(), x.double().mean((1, 2, 3)), rtol=1e-5, atol=0)
assert (out.double() - want).abs().max() < 4e-3 * want.abs().max()
leaves = [part.requires_grad_() for part in (x, scale, shift, matrix, bias)]
pull = torch.randn_like(want)
norm_expand_gelu(*leaves, 1e-5)[0].backward(pull.to(dtype))
doubles = [part.detach().double().requires_grad_() for part in leaves]
normed = torch.nn.functional.layer_norm(doubles[0], [9, 9, 40], doubles[1], doubles[2], 1e-5)
torch.nn.functional.gelu(torch.nn.functional.linear(normed, *doubles[3:])).backward(pull)
for ours, theirs in zip(leaves, doubles, strict=True):
    assert ours.grad.dtype == ours.dtype
    assert (ours.grad.double() - theirs.grad).abs().max() < 8e-3 * theirs.grad.abs().max()
""")
    assert done.returncode == 0, done.stderr[-4000:]


def test_the_operator_keeps_pytorchs_contract() -> None:
    """Schema, autograd registration and fake tensors; tracing needs a compiler, which the interpreter is not."""
    done = interpret("""
inputs = [torch.randn(*shape, requires_grad=True) for shape in [(2, 3, 3, 16), (3, 3, 16), (3, 3, 16), (24, 16), (24,)]]
torch.library.opcheck(norm_expand_gelu, (*inputs, 1e-6), test_utils=("test_schema", "test_autograd_registration",
                                                                     "test_faketensor"))
""")
    assert done.returncode == 0, done.stderr[-4000:]


def test_without_a_gpu_the_reason_is_said() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA GPU")
    block = torch.nn.Sequential(Block(4, 2))
    with pytest.raises(UserError, match="needs an NVIDIA GPU; leave them out"):
        kernels.fuse(block)
    assert type(block[0]) is Block


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_the_gpu_a_fused_block_is_the_plain_one(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Sequential(Block(64, 14)).cuda().to(memory_format=torch.channels_last)
    x = torch.randn(4, 64, 14, 14, device="cuda").to(memory_format=torch.channels_last)
    results = []
    for fused in (False, True):
        if fused:
            assert kernels.fuse(plain) == 1
        plain.zero_grad()
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            out = plain(x)
        out.float().square().mean().backward()
        results.append([out.detach().float(), *(part.grad.clone() for part in plain.parameters())])
    for one, other in zip(*results, strict=True):
        assert (one - other).abs().max() < (0.05 if dtype == torch.bfloat16 else 1e-3) * one.abs().max()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_model_without_the_block_is_refused() -> None:
    with pytest.raises(UserError, match="no ConvNeXt block"):
        kernels.fuse(SPEC.build(num_classes=10, input_shape=(1, 28, 28)))

"""A module on many processes: replicated (DistributedDataParallel) or in shards (FSDP2)."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def replicated(module: nn.Module) -> DistributedDataParallel:
    """The module, whose gradients are averaged over the processes; running statistics stay each process's own."""
    # A (C, 1, 7, 7) kernel is contiguous and channels-last at once; autograd and the buckets may choose differently.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
    return DistributedDataParallel(module, forward_sync_buffers=False, gradient_as_bucket_view=True)


@contextlib.contextmanager
def unsynchronised(module: nn.Module, wanted: bool) -> Iterator[None]:
    """Leave a replica's gradients unaveraged: they are summed up to the last part of a batch and averaged there."""
    inner = getattr(module, "_orig_mod", module)  # what torch.compile wraps
    if wanted and isinstance(inner, DistributedDataParallel):
        with inner.no_sync():
            yield
    else:
        yield


def shard(module: nn.Module, device: torch.device) -> None:
    """Spread parameters, gradients and optimizer state over the processes, block by block, in place.

    Blocks are the entries of the outermost Sequential and ModuleList containers; each is put together only while it
    is computed, so that never more than one lies whole on a device.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for part in (*_blocks(module), module):
        if any(True for _ in part.parameters()):
            fully_shard(part, mesh=mesh, reshard_after_forward=True)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for part in module.children():
        if isinstance(part, nn.Sequential | nn.ModuleList):
            yield from part.children()
        else:
            yield from _blocks(part)


def gathered(tensors: dict[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """The tensors with their shards put together, on the CPU; every process must call it.

    Where `keep` is false nothing is kept and the dict is empty.
    """
    from torch.distributed.tensor import DTensor

    whole = {}
    for name, tensor in sorted(tensors.items()):  # in one order in all: a resumed optimizer may have any
        full = tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor
        if keep:
            whole[name] = full
    return whole


def scattered(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's shard of a whole tensor, if `like`, of the same shape, is sharded; else the tensor itself."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    placed = tensor.to(like.device)
    return cast(Tensor, distribute_tensor(placed, like.device_mesh, like.placements, src_data_rank=None))

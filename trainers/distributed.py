"""World: the processes that train one model together, started by torchrun; a process alone is a world of its own.

Every process holds the whole model and computes its part of each batch; gradients are averaged. The process of rank 0,
the writer, alone writes files and speaks.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from trainers.manifest import CheckFailed, UserError, usable_threads
from trainers.spec import Recipe

T = TypeVar("T")

PATIENCE = timedelta(hours=2)  # one process may download and decode a data set while the others wait
LINGER_S = 5.0  # torchrun ends all processes once one has left: the one that explains why must be the first


@dataclass(frozen=True, kw_only=True)
class World:
    """Which process this is: `rank` of `size` in all, `local_rank` of `local_size` on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    restarts: int = 0  # how often torchrun has started this machine's processes again after a failure

    @classmethod
    def of_environment(cls) -> World:
        """What torchrun tells its processes; alone when it told nothing."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
        rank, size, local_rank, local_size, restarts = (os.environ.get(name) for name in names)
        if rank is None or size is None:
            return cls()
        return cls(
            rank=int(rank),
            size=int(size),
            local_rank=int(local_rank or 0),
            local_size=int(local_size or 1),
            restarts=int(restarts or 0),
        )

    @property
    def writer(self) -> bool:
        """Whether this process writes the run's files and lines."""
        return self.rank == 0

    def describe(self, device: torch.device) -> str:
        """The device, and how many processes train on such."""
        return str(device) if self.size == 1 else f"{device.type}, {self.size} processes"

    def fit(self, recipe: Recipe) -> Recipe:
        """The recipe as this world computes it. Raises UserError when it cannot."""
        if recipe.shard and self.size == 1:
            raise UserError("--shard spreads the model over processes and there is one; start it by torchrun "
                            "--nproc-per-node N -m trainers …, or leave --shard out")  # fmt: skip
        self.part(recipe.batch_size)
        # A rewritten convolution keeps a whole kernel of its own beside the part that would be sharded.
        return msgspec.structs.replace(recipe, rewrites="none") if recipe.shard else recipe

    def part(self, batch: int) -> slice:
        """This process's part of a batch of so many images; all are equal, so that the mean of means is the mean.

        Raises UserError when the batch cannot be divided.
        """
        count, rest = divmod(batch, self.size)
        if rest:
            raise UserError(f"a batch of {batch} images cannot be divided among {self.size} processes; give "
                            f"--batch-size {self.size * max(1, count)}")  # fmt: skip
        return slice(self.rank * count, (self.rank + 1) * count)

    @contextlib.contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Be connected to the others: nccl between GPUs, gloo between CPUs.

        Raises UserError when they cannot be found, CheckFailed when one of them is lost.
        """
        if self.size == 1:
            yield
            return
        self._share_cores()
        self._connect(device)
        try:
            yield
        except (UserError, CheckFailed):
            if not self.writer:
                time.sleep(LINGER_S)
            raise
        except RuntimeError as error:  # the group cannot be closed in order any more; it ends with the process
            if not isinstance(error, dist.DistError) and "gloo/transport" not in str(error):
                raise
            raise CheckFailed("another process of this run was lost; torchrun --max-restarts N goes on by itself, "
                              "--resume by hand") from None  # fmt: skip
        dist.destroy_process_group()

    def _share_cores(self) -> None:
        """Divide the machine's cores among its processes, unless OMP_NUM_THREADS says otherwise.

        torchrun itself sets it to 1 where it is not set, so 1 says nothing.
        """
        if os.environ.get("OMP_NUM_THREADS", "1") == "1":
            torch.set_num_threads(max(1, usable_threads() // self.local_size))

    def _connect(self, device: torch.device) -> None:
        cuda = device.type == "cuda"
        if cuda:
            torch.cuda.set_device(device)
        try:
            store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                store=PrefixStore(f"attempt-{self._attempt()}", store),
                rank=rank,
                world_size=size,
                timeout=PATIENCE,
                device_id=device if cuda else None,
            )
        except (ValueError, dist.DistError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"the other processes cannot be found ({reason}); start them all by torchrun") from None

    def _attempt(self) -> int:
        """A number for this start of the processes, the same in all.

        torchrun keeps its store over a restart, and with it the addresses of the processes that have died. Machines
        count their restarts apart, so for several of them TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 is the way.
        """
        return self.restarts if self.local_size == self.size else 0

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            self.any(False)  # on the CPU, whatever the device

    @contextlib.contextmanager
    def first_here(self) -> Iterator[None]:
        """Let one process of each machine run the block, then the others: what it leaves on disk is there for them."""
        if self.local_rank:
            self.barrier()
        yield
        if not self.local_rank:
            self.barrier()

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor, summed over all processes in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; all get the same answer. Does not wait for the device."""
        return flag if self.size == 1 else self.sum(torch.tensor(int(flag))).item() > 0

    def agree(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors by the writer's."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def shared(self, make: Callable[[], T], kind: Any) -> T:
        """What the writer makes (by `make`, called there only), in every process; it travels as JSON of type `kind`."""
        if self.size == 1:
            return make()
        content = self.shared_bytes(lambda: msgspec.json.encode(make()))
        value: T = msgspec.json.decode(content, type=kind)
        return value

    def shared_bytes(self, make: Callable[[], bytes]) -> bytes:
        """Bytes that the writer makes, in every process."""
        if self.size == 1:
            return make()
        content = torch.frombuffer(bytearray(make()), dtype=torch.uint8) if self.writer else torch.empty(0)
        count = torch.tensor(len(content))
        self.agree([count])
        if not self.writer:
            content = torch.empty(int(count), dtype=torch.uint8)
        self.agree([content])
        return content.numpy().tobytes()


ALONE = World()

"""The ladder's rungs: training techniques in order, each one or a few switches of the same plain loop."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from trainers.cli import choose
from trainers.manifest import Struct, usable_threads
from trainers.spec import Precision

Loader = Literal["images", "workers", "packed"]


class Switches(Struct, frozen=True, kw_only=True):
    """How `loop.py` trains. The defaults are the plainest script that one could write."""

    threads: int = 1  # 0: all that this process may use
    loader: Loader = "images"  # one image at a time; in worker processes; or packed and augmented on the device
    batch_size: int = 32
    pin_memory: bool = False
    non_blocking: bool = False  # copies to the device do not wait for it
    half_input: bool = False  # loaders hand over 16-bit images
    item_every_step: bool = True  # loss and hits are read from the device after each step
    set_to_none: bool = False  # gradients are dropped, not filled with zeros
    fused: bool = False  # the optimizer's one kernel for everything
    precision: Precision = "fp32"
    channels_last: bool = False
    keep_memory: bool = False  # malloc keeps what a step freed
    rewrites: tuple[str, ...] = ()  # names of rewrites.REWRITES
    compile: Literal["", "default", "reduce-overhead"] = ""  # the last one records CUDA graphs
    kernels: bool = False  # own Triton kernels

    @property
    def cores(self) -> int:
        """The number of threads that is meant."""
        return self.threads or usable_threads()


@dataclass(frozen=True, kw_only=True)
class Technique:
    """One row of RUNGS. `changes` are Switches fields; a `batch_size` of None stands for the larger of the two."""

    title: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    needs: Literal["", "cuda", "glibc"] = ""


RUNGS: dict[str, Technique] = {
    "one-thread": Technique(title="the plain script on one CPU thread"),
    "all-threads": Technique(title="all CPU threads", changes={"threads": 0}),
    "loader-workers": Technique(title="images prepared in worker processes", changes={"loader": "workers"}),
    "pinned-memory": Technique(title="batches in pinned memory", changes={"pin_memory": True}, needs="cuda"),
    "large-batch": Technique(title="a larger batch", changes={"batch_size": None}),
    "no-sync": Technique(
        title="non-blocking copies, no .item() in the step", changes={"non_blocking": True, "item_every_step": False}
    ),
    "half-input": Technique(title="16-bit images from the loader", changes={"half_input": True}),
    # From here on images are no longer what a step waits for; before, they would hide what the others are worth.
    "packed": Technique(title="packed images, augmented on the device", changes={"loader": "packed"}),
    "grads-none": Technique(title="gradients set to None", changes={"set_to_none": True}),
    "fused": Technique(title="fused optimizer", changes={"fused": True}),
    "bf16": Technique(title="autocast to bf16", changes={"precision": "bf16"}),
    "fp16": Technique(title="autocast to fp16, scaled gradients", changes={"precision": "fp16"}, needs="cuda"),
    "channels-last": Technique(title="channels-last memory", changes={"channels_last": True}),
    # Each alone can be slower on a CPU whose bf16 units want this layout, and both together faster.
    "bf16-channels-last": Technique(
        title="bf16 and channels-last together", changes={"precision": "bf16", "channels_last": True}
    ),
    "keep-memory": Technique(title="malloc keeps freed memory", changes={"keep_memory": True}, needs="glibc"),
    "live-taps": Technique(title="kernels without dead taps", changes={"rewrites": ("live-taps",)}),
    "small-maps": Technique(title="convolutions on small maps as matrices", changes={"rewrites": ("small-maps",)}),
    "map-norm": Technique(title="norms of maps as they lie in memory", changes={"rewrites": ("map-norm",)}),
    "compile": Technique(title="torch.compile", changes={"compile": "default"}),
    "cuda-graphs": Technique(title="CUDA graphs", changes={"compile": "reduce-overhead"}, needs="cuda"),
    "kernels": Technique(title="fused Triton kernels", changes={"kernels": True}, needs="cuda"),
}


def selected(text: str | None) -> list[str]:
    """A comma list as names in the table's order; None means all. Raises UserError on an unknown name."""
    if text is None:
        return list(RUNGS)
    asked = {choose(name.strip(), RUNGS, "rung") for name in text.split(",")}
    return [name for name in RUNGS if name in asked]


def climbed(switches: Switches, name: str, large_batch: int) -> Switches:
    """`switches` with one more technique."""
    changes = dict(RUNGS[name].changes)
    if "batch_size" in changes:
        changes["batch_size"] = large_batch
    if "rewrites" in changes:
        changes["rewrites"] = switches.rewrites + changes["rewrites"]
    return msgspec.structs.replace(switches, **changes)


def unusable(names: Iterable[str], device: str) -> dict[str, str]:
    """The rungs that cannot be tried on this device, each with its reason."""
    reasons = {}
    for name in names:
        needs = RUNGS[name].needs
        if needs == "cuda" and device != "cuda":
            reasons[name] = "needs an NVIDIA GPU"
        elif needs == "glibc" and (device != "cpu" or sys.platform != "linux"):
            reasons[name] = "needs glibc's malloc: Linux, training on the CPU"
    return reasons

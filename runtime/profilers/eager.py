"""PyTorch's profiler of the forward pass: a Chrome trace, a flame graph, and each operator's own time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from runtime.profilers import Kernel, Taken
from trainers import profiling

if TYPE_CHECKING:
    from export.artifact import Found
    from runtime.backend import Session

WARM = 3  # steps before the first that counts


def take(session: Session, found: Found, runs: int, stem: Path) -> Taken:
    """A row for each operator and its inputs' shapes, by its own time, without what it calls; files beside `stem`."""
    from torch.autograd import DeviceType  # type: ignore[attr-defined]
    from torch.profiler import record_function

    device: str = session._device  # type: ignore[attr-defined]  # a TorchSession
    for _ in range(WARM):
        session.step()
    session.sync()
    with profiling.recorder(device) as recorded:
        for number in range(runs):
            with record_function(f"step {number}"):
                session.step()
                session.sync()
    files = profiling.write(recorded, device, stem, f"{found.name}, {runs} forward passes")
    kernels = []
    for event in recorded.key_averages(group_by_input_shape=True):
        own = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        if event.device_type != DeviceType.CPU or event.is_user_annotation or event.key == "[memory]":
            continue
        shapes = ", ".join("x".join(map(str, shape)) for shape in event.input_shapes if shape)
        kernels.append(Kernel(  # PyTorch's artifacts are fp32 throughout
            name=f"{event.key} ({shapes})", operator=event.key, precision="fp32", seconds=own / 1e6 / runs,
            calls=max(1, round(event.count / runs)),
        ))  # fmt: skip
    return Taken(kernels=tuple(kernels), files=tuple(map(str, files)))

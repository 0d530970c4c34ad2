"""PyTorch, operator by operator: the baseline that every ratio is to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from runtime.backends import lacking
from trainers.manifest import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from export.artifact import Found

formats = ("torch",)
packages = ("torch",)
options: Mapping[str, tuple[str, ...]] = {"kernel": ("torch", "triton")}
computes = True


def unusable(device: str) -> str | None:
    return lacking("torch", "torch torchvision", device)


class TorchSession:
    """A callable on tensors, eager or compiled, in a thread that `settle` has set to compute without gradients."""

    def __init__(self, forward: Callable[[Any], Any], device: str, build_s: float, attested: dict[str, str]) -> None:
        import torch

        self._torch, self._device, self._forward = torch, device, forward
        self._x: Tensor | None = None
        self._logits: Tensor | None = None
        self.build_s, self.attested = build_s, attested

    def bind(self, x: np.ndarray) -> None:
        self._x = self._torch.from_numpy(x).to(self._device)

    def step(self) -> None:
        self._logits = self._forward(self._x)

    def sync(self) -> None:
        if self._device == "cuda":
            self._torch.cuda.synchronize()

    def device_s(self) -> float | None:
        if self._device != "cuda":
            return None
        start, end = (self._torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self.step()
        end.record()
        end.synchronize()
        milliseconds: float = start.elapsed_time(end)
        return milliseconds / 1e3

    def fetch(self) -> np.ndarray:
        assert self._logits is not None, "fetch before step"
        logits: np.ndarray = self._logits.float().cpu().numpy()
        return logits

    def close(self) -> None:
        self._x = self._logits = None
        self._forward = _closed


def _closed(_: Any) -> Any:
    raise AssertionError("the session is closed")


def settle(threads: int) -> None:
    """Set PyTorch to honest fp32 and to `threads` threads, and this thread to compute without gradients.

    Once and for all: a context entered in every step would be timed. Who shares the thread keeps a `no_grad` around it.
    """
    import torch

    torch.set_grad_enabled(False)
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False  # on by default for convolutions; the artifact says fp32


def module(artifact: Found, device: str, threads: int) -> nn.Module:
    """The artifact's fp32 module on the device, with PyTorch settled."""
    from export.exporters import load_torch

    settle(threads)
    loaded: nn.Module = load_torch(artifact).to(device)
    return loaded


def load(artifact: Found, *, device: str, threads: int, batch: int, options: Mapping[str, str]) -> TorchSession:
    loaded, attested = module(artifact, device, threads), {"engine": "eager", "precision": "fp32"}
    if options.get("kernel") == "triton":
        attested["kernel"] = _fuse(loaded, device)
    return TorchSession(loaded, device, 0.0, attested)


def _fuse(loaded: nn.Module, device: str) -> str:
    """Swap in the project's own kernels; returns what to attest. Raises UserError with the reason when none fits."""
    from trainers.kernels import fuse

    if device != "cuda":
        raise UserError("kernel=triton: needs an NVIDIA GPU; choose --device cuda or leave it out")
    return f"triton ({fuse(loaded)} blocks)"

"""torch.compile: on the CPU with frozen weights, which lets the compiler fold and repack them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from runtime.backends import eager

if TYPE_CHECKING:
    from export.artifact import Found

formats = ("torch",)
packages = ("torch",)
options: Mapping[str, tuple[str, ...]] = {"mode": ("default", "reduce-overhead", "max-autotune")}
computes = True


def unusable(device: str) -> str | None:
    compilers = (os.environ.get("CXX", ""), "c++", "g++", "clang++")
    if not any(name and shutil.which(name) for name in compilers):
        return "torch.compile needs a C++ compiler; install g++"
    return eager.unusable(device)


def load(artifact: Found, *, device: str, threads: int, batch: int, options: Mapping[str, str]) -> eager.TorchSession:
    """Compile for exactly this batch. Freezing is only taken up under no_grad, so compilation runs there."""
    import torch
    import torch._inductor.config as inductor

    loaded = eager.module(artifact, device, threads)
    assert artifact.record is not None, "a torch artifact has a record"
    inductor.freezing = True
    torch._dynamo.reset()  # a second batch size would otherwise be compiled with a free batch dimension
    mode = options.get("mode", "default")
    compiled = torch.compile(loaded, mode=mode, dynamic=False)
    example = torch.zeros((batch, *artifact.record.inputs[0].shape[1:]), device=device)  # type: ignore[arg-type]
    started = time.perf_counter()
    with torch.no_grad():
        compiled(example)
        if device == "cuda":
            torch.cuda.synchronize()
    build_s = time.perf_counter() - started
    attested = {"engine": "inductor", "precision": "fp32", "mode": mode, "freezing": "on"}
    return eager.TorchSession(compiled, device, build_s, attested)

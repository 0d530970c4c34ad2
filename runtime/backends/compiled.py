"""torch.compile, by default with frozen weights, which lets the compiler fold and repack them.

What it compiled is kept, as PyTorch keeps it, but in the private cache folder: its entries hold pickles and native
code. `cache=off` compiles from nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from runtime import engine_cache
from runtime.backends import eager

if TYPE_CHECKING:
    from export.artifact import Found

formats = ("torch",)
packages = ("torch",)
options: Mapping[str, tuple[str, ...]] = {
    "mode": ("default", "reduce-overhead", "max-autotune"), "freezing": ("on", "off"), "cache": ("on", "off"),
}  # fmt: skip
computes = True

PLACE = "TORCHINDUCTOR_CACHE_DIR"


def unusable(device: str) -> str | None:
    compilers = (os.environ.get("CXX", ""), "c++", "g++", "clang++")
    if not any(name and shutil.which(name) for name in compilers):
        return "torch.compile needs a C++ compiler; install g++"
    return eager.unusable(device)


def load(artifact: Found, *, device: str, threads: int, batch: int, options: Mapping[str, str]) -> eager.TorchSession:
    """Compile for exactly this batch. Freezing is only taken up under no_grad, so compilation runs there."""
    import torch
    import torch._inductor.config as inductor
    from torch._dynamo.utils import counters

    loaded = eager.module(artifact, device, threads)
    assert artifact.record is not None, "a torch artifact has a record"
    mode, freezing = options.get("mode", "default"), options.get("freezing", "on")
    inductor.freezing = freezing == "on"
    torch._dynamo.reset()  # a second batch size would otherwise be compiled with a free batch dimension
    compiled = torch.compile(loaded, mode=mode, dynamic=False)
    example = torch.zeros((batch, *artifact.record.inputs[0].shape[1:]), device=device)  # type: ignore[arg-type]
    before = counters["inductor"].copy()
    started = time.perf_counter()
    with torch.no_grad(), kept() if options.get("cache", "on") == "on" else fresh():
        compiled(example)
        if device == "cuda":
            torch.cuda.synchronize()
    build_s = time.perf_counter() - started
    attested = {"engine": "inductor", "precision": "fp32", "mode": mode, "freezing": freezing,
                "cache": _found(counters["inductor"] - before)}  # fmt: skip
    return eager.TorchSession(compiled, device, build_s, attested)


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Compile with the private cache: what was compiled before is found there."""
    before = os.environ.get(PLACE)
    os.environ[PLACE] = str(engine_cache.folder("inductor"))
    try:
        yield
    finally:
        if before is None:
            del os.environ[PLACE]
        else:
            os.environ[PLACE] = before


@contextlib.contextmanager
def fresh() -> Iterator[None]:
    """Compile with a cache that is empty, and gone afterwards."""
    from torch._inductor.utils import fresh_cache

    with fresh_cache(dir=str(engine_cache.folder("fresh"))):
        yield


def _found(counts: Counter[str]) -> str:
    """Whether the compiler's cache had the graphs; it keeps none whose weights freezing packed for oneDNN."""
    if counts["fxgraph_cache_bypass"]:
        return "bypassed"
    return "miss" if counts["fxgraph_cache_miss"] else "hit"

"""AOTInductor: the module exported and compiled ahead of time into a package, which runs without tracing anything.

A package is a cache, as TensorRT's engines are: it lies in the user's private cache folder, keyed by what the artifact
is, PyTorch's version, the processor or GPU, the threads and the batch size, all of which are compiled in. It holds
native code and no pickle, and only what was compiled here is loaded. Deleting it costs time only.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import engine_cache
from runtime.backends import compiled, eager

if TYPE_CHECKING:
    from export.artifact import Artifact, Found

formats = ("torch",)
packages = ("torch",)
options: Mapping[str, tuple[str, ...]] = {"freezing": ("on", "off")}
computes = True


def unusable(device: str) -> str | None:
    return compiled.unusable(device)


def load(artifact: Found, *, device: str, threads: int, batch: int, options: Mapping[str, str]) -> eager.TorchSession:
    import torch
    from torch._inductor import aoti_load_package

    eager.settle(threads)
    assert artifact.record is not None, "a torch artifact has a record"
    freezing, build_s = options.get("freezing", "on"), 0.0
    key = (*_identity(artifact.record), torch.__version__, torch.backends.cpu.get_cpu_capability(),
           engine_cache.hardware(device), str(threads), str(batch), freezing)  # fmt: skip
    package = engine_cache.path("aoti", "", *key)
    if not package.is_dir():
        started = time.perf_counter()
        _build(artifact, package, device=device, threads=threads, batch=batch, freezing=freezing == "on")
        build_s = time.perf_counter() - started
    attested = {"engine": "aotinductor", "precision": "fp32", "freezing": freezing,
                "package": "built" if build_s else "cached"}  # fmt: skip
    run = aoti_load_package(package).loader.boxed_run  # calling the package parses its call's form anew each time
    return eager.TorchSession(lambda x: run([x])[0], device, build_s, attested)


def _build(artifact: Found, package: Path, *, device: str, threads: int, batch: int, freezing: bool) -> None:
    """Compile, and unpack: a packed one is unpacked at each load, and a killed worker leaves that behind."""
    import torch
    from torch._inductor import aoti_compile_and_package

    module = eager.module(artifact, device, threads)
    assert artifact.record is not None
    example = torch.zeros((batch, *artifact.record.inputs[0].shape[1:]), device=device)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory(dir=package.parent, prefix=".build-") as folder:
        packed, unpacked = Path(folder) / "model.pt2", Path(folder) / "unpacked"
        with torch.no_grad(), compiled.fresh():  # freezing is only taken up under no_grad
            program = torch.export.export(module, (example,))
            aoti_compile_and_package(program, package_path=str(packed), inductor_configs={"freezing": freezing})
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(unpacked)
        (inner,) = unpacked.iterdir()
        inner.rename(package)


def _identity(record: Artifact) -> tuple[str, ...]:
    """What the artifact computes: weights alone do not say which activation stands between them.

    Raises UserError for a model of the user's own that this command line does not name: a package of it is its code.
    """
    import msgspec

    from trainers import external, models

    models.get(record.model)
    own = external.source(record.model) if external.is_file(record.model) else b""
    means = msgspec.json.encode((record.model, record.options, record.variant, record.inputs, record.classes))
    return record.file.sha256, hashlib.sha256(means + own).hexdigest()

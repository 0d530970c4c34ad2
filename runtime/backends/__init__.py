"""The engines that can be measured: one module each, whose file name is the command line's name."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from runtime.backend import Backend
from trainers import manifest
from trainers.cli import choose

if TYPE_CHECKING:
    from export.artifact import Found


def names() -> list[str]:
    """The known backends, without importing any."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> Backend:
    """The backend of that name; its engine is not imported. Raises UserError naming the nearest known one."""
    return cast(Backend, importlib.import_module(f"{__name__}.{choose(name, names(), 'backend')}"))


def serves(backend: Backend, found: Found) -> bool:
    """Whether the backend is for such a file: of its formats, and of the forms that it takes where it takes few."""
    takes = getattr(backend, "takes", None)
    return found.kind in backend.formats and (takes is None or found.record is None or takes(found.record))


def cores(threads: int, options: Mapping[str, str]) -> int:
    """How many of its threads an engine uses: all, or one, which waits for no other and is faster for tiny models."""
    return 1 if options.get("cores") == "1" else threads


def version(backend: Backend) -> str:
    """The installed engine's version, or an empty string."""
    for package in backend.packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(package)
    return ""


@functools.cache
def gpu() -> str | None:
    """The NVIDIA GPUs of this machine, asked once."""
    return manifest.gpu()


def lacking(module: str, install: str, device: str) -> str | None:
    """The reason shared by most engines: the package is not installed, or the GPU asked for is not there."""
    if importlib.util.find_spec(module) is None:
        return f"not installed; pip install {install}"
    if device == "cuda" and gpu() is None:
        return "no NVIDIA GPU found (nvidia-smi lists none)"
    return None

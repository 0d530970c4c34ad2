"""How each engine's own profiler is run: one module a backend, of the same name, with

    take(session, found, runs, stem) -> Taken

Profilers cost time, so a second session with the same settings is profiled where the engine allows it, and the
unprofiled time of the first is reported beside.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from trainers.manifest import Struct, UserError

if TYPE_CHECKING:
    from export.artifact import Found
    from runtime.backend import Session


class Kernel(Struct, frozen=True, kw_only=True):
    """One entry of an engine's profile. `nodes` are the nodes of the file that it stands for, in the file's order."""

    name: str  # by the engine
    operator: str
    precision: str  # as `export.costs` names it
    seconds: float  # in one inference, all calls together
    calls: int = 1
    nodes: tuple[str, ...] = ()


class Taken(Struct, frozen=True, kw_only=True):
    """A profile: its entries in the order of execution, and the files left beside."""

    kernels: tuple[Kernel, ...]
    files: tuple[str, ...] = ()


class Profiler(Protocol):
    """The part of an engine's module that is called."""

    def take(self, session: Session, found: Found, runs: int, stem: Path) -> Taken:
        """Profile `runs` inferences on the bound input. Files, if any, begin with `stem`."""


def names() -> list[str]:
    """The backends that have a profiler."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(backend: str) -> Profiler:
    """The backend's profiler. Raises UserError when it has none."""
    if backend not in names():
        raise UserError(f"{backend} has no profiler; choose from {', '.join(names())}")
    return cast(Profiler, importlib.import_module(f"{__name__}.{backend}"))


def middle(values: Sequence[float]) -> float:
    """The mean of the middle half: as deaf to outliers as a median, and finer than a clock that counts microseconds."""
    ordered = sorted(values)
    cut = len(ordered) // 4
    kept = ordered[cut : len(ordered) - cut]
    return sum(kept) / len(kept)

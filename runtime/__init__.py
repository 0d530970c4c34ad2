"""Stage 3: artifacts to measurements, and to answers: `from runtime import load, best` (docs/api.md).

Nothing heavy is imported here: the names below come when they are first asked for, an engine when it loads a file.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.api import best, load
    from runtime.backend import BackendError
    from runtime.model import Model
    from trainers.manifest import UserError

__all__ = ["BackendError", "Model", "UserError", "best", "load"]

_HOMES = {
    "best": "runtime.api", "load": "runtime.api", "Model": "runtime.model", "BackendError": "runtime.backend",
    "UserError": "trainers.manifest",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

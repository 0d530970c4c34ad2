"""The models that can be trained by name: one file each, whose name is the command line's and which defines SPEC.

External models, whose names have a colon, are in trainers/external.py.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from trainers.cli import choose

if TYPE_CHECKING:
    from trainers.spec import ModelSpec


def names() -> list[str]:
    """The known models, without importing any."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> ModelSpec:
    """The model's SPEC. Raises UserError naming the nearest known model."""
    if ":" in name:
        from trainers import external

        return external.spec(name)
    spec: ModelSpec = importlib.import_module(f"{__name__}.{choose(name, names(), 'model')}").SPEC
    return spec

"""The data sources: one file each, whose name is the command line's and which defines SOURCE."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from trainers.cli import choose

if TYPE_CHECKING:
    from trainers.source import Source


def names() -> list[str]:
    """The known sources, without importing any."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> Source:
    """The source's SOURCE. Raises UserError naming the nearest known source."""
    source: Source = importlib.import_module(f"{__name__}.{choose(name, names(), 'data source')}").SOURCE
    return source

"""The verbs of `python -m runtime`: one module each, whose file name is the command line's word.

A verb has SUMMARY, EXAMPLES, `flags(parser)` and `run(arguments) -> exit status`. What is heavy is imported by `run`.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from typing import Protocol, cast


class Verb(Protocol):
    """One word of the command line."""

    SUMMARY: str
    EXAMPLES: str

    def flags(self, parser: argparse.ArgumentParser) -> None:
        """Add the verb's arguments."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it; returns the exit status."""


def verbs() -> dict[str, Verb]:
    """Every verb by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: cast(Verb, importlib.import_module(f"{__name__}.{name}")) for name in names}

"""How each engine is asked what it executed: one module a backend, of the same name, with

    attest(session, found) -> Ran

The session is loaded, and the input of its last step still bound. It is asked after the timed turns are over, for the
answer may take time and memory of its own.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Protocol, cast

from runtime.attestation import Ran

if TYPE_CHECKING:
    from export.artifact import Found
    from runtime.backend import Session


class Attester(Protocol):
    """The part of an engine's module that is called."""

    def attest(self, session: Session, found: Found) -> Ran:
        """What one inference of this session executed."""


def names() -> list[str]:
    """The backends that can be asked."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def ran(backend: str, session: Session, found: Found) -> Ran:
    """What the session executes; empty for a backend that tells nothing."""
    if backend not in names():
        return Ran()
    return cast(Attester, importlib.import_module(f"{__name__}.{backend}")).attest(session, found)

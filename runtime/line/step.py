"""Step: one command of the line, and whether anything is left for it to do."""

from __future__ import annotations

import shlex
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command, after `python -m`. One without a command is reused: `note` says what is there."""

    stage: str  # train, export, tune, bench, roofline, profile, report
    models: tuple[str, ...]
    command: tuple[str, ...] = ()
    note: str = ""
    seconds: float | None = None  # about how long it takes; None: not known

    @property
    def title(self) -> str:
        return " ".join([self.stage, *self.models])

    @property
    def shown(self) -> str:
        """The command as a user would type it."""
        return shlex.join(["python", "-m", *self.command])

"""Wish: what a user asks of the whole line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Wish:
    """`data` is for models that have no checkpoint yet, and has to be what those that have one were trained on."""

    models: tuple[str, ...]
    artifacts: Path
    page: Path
    data: str | None = None
    recipe: str = "default"
    device: str = "auto"
    max_drop: float = 1.0
    quick: bool = False
    tune: bool = False
    budget_s: float = 900.0
    again: bool = False  # measure anew though nothing has changed since the last report
    cache: Path | None = None

    @property
    def place(self) -> tuple[str, ...]:
        """The flag for the folder that every command gets."""
        return () if self.artifacts == Path("artifacts") else ("--artifacts", str(self.artifacts))

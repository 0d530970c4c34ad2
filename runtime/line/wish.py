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
    shape: tuple[int, int, int] | None = None  # (channels, height, width), where no checkpoint or model says so
    recipe: str = "default"
    device: str = "auto"
    max_drop: float = 1.0
    quick: bool = False
    batches: tuple[int, ...] = (1,)
    tune: bool = False
    budget_s: float = 900.0
    again: bool = False  # measure anew though nothing has changed since the last report
    cache: Path | None = None

    def flags(self, *names: str) -> tuple[str, ...]:
        """These flags of a command, as far as they were given."""
        usual = {"data": None, "input": None, "recipe": "default", "device": "auto", "cache": None,
                 "batch": "1"}  # fmt: skip
        given = [(f"--{name}", str(value)) for name in names if (value := getattr(self, name)) != usual[name]]
        return tuple(text for pair in given for text in pair)

    @property
    def batch(self) -> str:
        """The batch sizes as commands take them."""
        return ",".join(map(str, self.batches))

    @property
    def input(self) -> str | None:
        """The shape as commands take it."""
        return "x".join(map(str, self.shape)) if self.shape else None

    @property
    def place(self) -> tuple[str, ...]:
        """The flag for the folder that every command gets."""
        return () if self.artifacts == Path("artifacts") else ("--artifacts", str(self.artifacts))

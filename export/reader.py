"""The process that reads foreign files: what kills or hangs it leaves the command that asked unharmed.

Run by `export.foreign`, never by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from export.foreign import describe
from trainers.serving import serve


class Reader:
    """Answers `describe`."""

    def describe(self, *, path: str, shape: list[int] | None) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.to_builtins(describe(Path(path), tuple(shape) if shape else None))
        return found


def explain(error: Exception) -> str:
    """A reader's or an engine's exception as one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:240]


if __name__ == "__main__":
    serve(Reader(), explain)

"""Reports on disk."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from trainers.manifest import UserError

T = TypeVar("T")

FOLDER = "reports"  # under the artifacts folder
SHARE = 0.05  # of a run's time, that keeping its rounds may take


class Keeper(Generic[T]):
    """Saves what it is given, but passes some over so as to take no more than SHARE of the time."""

    def __init__(self, save: Callable[[T], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._save, self._clock = save, clock
        self._due = 0.0
        self._waiting: T | None = None

    def keep(self, what: T) -> None:
        """Save now, or leave it for the next time or `flush`."""
        self._waiting = what
        began = self._clock()
        if began >= self._due:
            self.flush()
            over = self._clock()
            self._due = over + (over - began) * (1 - SHARE) / SHARE

    def flush(self) -> None:
        """Save what was last given, if it was passed over."""
        if self._waiting is not None:
            self._save(self._waiting)
            self._waiting = None


def newest_first(folder: Path) -> list[Path]:
    """The reports in `folder`, whose names begin with the time; among those of one moment their names decide."""
    return sorted(folder.glob("[0-9]*.json"), key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)


def latest(artifacts: Path) -> Path:
    """The newest report under the artifacts folder. Raises UserError when there is none."""
    paths = newest_first(artifacts / FOLDER)
    if not paths:
        raise UserError(f"no report in {artifacts / FOLDER}; make one with: python -m runtime bench MODEL")
    return paths[0]


def named(path: Path) -> Path:
    """The report that the user means: a file, or the newest in a folder of reports or artifacts.

    Raises UserError when a folder holds none.
    """
    if not path.is_dir():
        return path
    here = newest_first(path)
    return here[0] if here else latest(path)

"""Journal: results appended one a line, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from trainers.manifest import Struct

T = TypeVar("T", bound=Struct)


class Journal(Generic[T]):
    """Structs of one kind in a file, by key. A line that was cut off when the run was killed is measured again."""

    def __init__(self, path: Path, kind: type[T], key: Callable[[T], Hashable]) -> None:
        self.path, self.kind, self.key = path, kind, key
        self.found: dict[Hashable, T] = {}
        for line in path.read_bytes().splitlines() if path.is_file() else ():
            try:
                entry = msgspec.json.decode(line, type=kind)
            except msgspec.DecodeError:
                continue
            self.found[key(entry)] = entry

    def get(self, key: Hashable, measure: Callable[[], T]) -> T:
        """The entry of this key: as it was kept, or measured now and kept."""
        if key not in self.found:
            entry = measure()
            assert self.key(entry) == key, "an entry is kept under its own key"
            self._append(entry)
            self.found[key] = entry
        return self.found[key]

    def _append(self, entry: T) -> None:
        """Begins with a line break: the last run may have been cut off within a line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(b"\n" + msgspec.json.encode(entry) + b"\n")
            file.flush()
            os.fsync(file.fileno())

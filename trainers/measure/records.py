"""Where the measuring commands put their files: artifacts/<model>/<kind>/<time>-<host>.*."""

from __future__ import annotations

import itertools
from pathlib import Path

from trainers.checkpoint import folder_name
from trainers.manifest import Environment


def place(artifacts: Path, name: str, kind: str, environment: Environment) -> Path:
    """A path without suffix whose names are not taken. A folder of its own: the model's own holds artifacts only."""
    folder = artifacts / folder_name(name) / kind
    stamp = environment.time.replace(":", "").replace("+0000", "Z")
    stem = f"{stamp}-{folder_name(environment.host)}".replace(".", "-")  # a dot would be taken for a suffix's
    names = (f"{stem}{'' if number == 1 else f'-{number}'}" for number in itertools.count(1))
    return next(folder / name for name in names if not (folder / f"{name}.json").exists())

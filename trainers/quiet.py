"""How busy the machine is with other things: timings taken beside another program's work mean little."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

NOISY = 0.2  # cores' worth of other work from which on a report warns

STAT = Path("/proc/stat")
IDLE, IOWAIT, STEAL = 3, 4, 7  # fields of its first line, after the name


class Load(NamedTuple):
    """Cores in use, and the share of all cores' time that the host of a virtual machine took away."""

    cores: float
    steal: float


def load(seconds: float = 0.5) -> Load | None:
    """What the machine does over the next `seconds`, in which the caller and its children must rest.

    None where it is not told. The cores in use include what the host took away.
    """
    try:
        before = _ticks()
        time.sleep(seconds)
        after = _ticks()
    except (OSError, ValueError):
        return None
    spent = [b - a for a, b in zip(before, after, strict=True)]
    total = sum(spent)
    cores = sum(line.startswith("cpu") for line in STAT.read_text().splitlines()) - 1
    if not total:
        return None
    return Load(cores * (1 - (spent[IDLE] + spent[IOWAIT]) / total), spent[STEAL] / total)


def other_load(seconds: float = 0.5) -> float | None:
    """The cores of `load`."""
    seen = load(seconds)
    return seen and seen.cores


def _ticks() -> list[int]:
    """Clock ticks of all cores so far, by what they were spent on."""
    return [int(part) for part in STAT.read_text().split("\n", 1)[0].split()[1:9]]

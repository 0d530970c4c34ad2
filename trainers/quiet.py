"""How busy the machine is with other things: timings taken beside another program's work mean little."""

from __future__ import annotations

import time
from pathlib import Path

NOISY = 0.2  # cores' worth of other work from which on a report warns

STAT = Path("/proc/stat")
IDLE, IOWAIT = 3, 4  # fields of its first line, after the name


def other_load(seconds: float = 0.5) -> float | None:
    """Cores in use over the next `seconds`, in which the caller and its children must rest; None where unknown.

    On a virtual machine this includes what the host took away.
    """
    try:
        before = _ticks()
        time.sleep(seconds)
        after = _ticks()
    except (OSError, ValueError):
        return None
    total, idle = (b - a for a, b in zip(before, after, strict=True))
    cores = sum(line.startswith("cpu") for line in STAT.read_text().splitlines()) - 1
    return cores * (1 - idle / total) if total else None


def _ticks() -> tuple[int, int]:
    """All clock ticks of all cores so far, and the idle ones among them."""
    ticks = [int(part) for part in STAT.read_text().split("\n", 1)[0].split()[1:9]]
    return sum(ticks), ticks[IDLE] + ticks[IOWAIT]

"""Energy counters of the processor (RAPL, by Linux's powercap), where the machine has them and lets them be read."""

from __future__ import annotations

from pathlib import Path

ZONES = Path("/sys/class/powercap")


def joules(zones: Path = ZONES) -> float | None:
    """What all processor packages have used since some moment; None where no counter can be read.

    A counter starts again at zero once it is full (after hours): the caller's difference is then negative.
    """
    try:
        counters = [int((zone / "energy_uj").read_text()) for zone in sorted(zones.glob("intel-rapl:?"))]
    except (OSError, ValueError):
        return None
    return sum(counters) / 1e6 if counters else None

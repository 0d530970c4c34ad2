"""State: how the machine is while nothing is measured: the causes for which a time may not be what it seems."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path

from trainers.manifest import Struct, output_of
from trainers.quiet import NOISY, load

CPUS = Path("/sys/devices/system/cpu")
CPUINFO = Path("/proc/cpuinfo")
STEAL = 0.03  # share of the time that a host may take before a report warns
THROTTLED = 0.9  # of the frequency seen before
ON_DEMAND = ("powersave", "ondemand", "conservative", "schedutil")  # governors that raise the clock only under load


class State(Struct, frozen=True, kw_only=True):
    """Seen while every worker sleeps. None where the machine does not tell."""

    other_load: float | None = None  # cores that other programs used
    steal: float | None = None  # share of the cores' time that the host of a virtual machine took away
    mhz: float | None = None  # the cores' median frequency
    governor: str | None = None
    gpu: str | None = None  # clocks in MHz, temperature, power, as nvidia-smi prints them


def observe(device: str = "cpu", seconds: float = 0.5) -> State:
    """The machine over the next `seconds`, in which the caller and its children must rest."""
    seen = load(seconds)
    return State(other_load=seen and seen.cores, steal=seen and seen.steal, mhz=_mhz(), governor=_governor(),
                 gpu=_gpu() if device == "cuda" else None)  # fmt: skip


def causes(states: tuple[State, ...]) -> list[str]:
    """What may have disturbed a run, one short clause each; empty on a machine that was quiet throughout."""
    found = []
    others, steal = _worst(s.other_load for s in states), _worst(s.steal for s in states)
    if steal is not None and steal >= STEAL:
        found.append(f"the host took {steal:.0%} of the processors' time")
    elif others is not None and others >= NOISY:
        found.append(f"others used {others:.1f} cores")
    clocks = [state.mhz for state in states if state.mhz]
    if clocks and min(clocks) < THROTTLED * max(clocks):
        found.append(f"the clock varied between {min(clocks):.0f} and {max(clocks):.0f} MHz")
    return found


def notes(states: tuple[State, ...]) -> list[str]:
    """What is no disturbance but should be known."""
    governors = {state.governor for state in states if state.governor in ON_DEMAND}
    return [f"CPU governor {name}: the clock rises only under load" for name in sorted(filter(None, governors))]


def _worst(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _mhz() -> float | None:
    """From cpufreq where it is, else as the kernel last saw the clocks."""
    kilohertz = [int(text) for path in sorted(CPUS.glob("cpu[0-9]*/cpufreq/scaling_cur_freq")) if (text := _read(path))]
    if kilohertz:
        return statistics.median(kilohertz) / 1000
    lines = _read(CPUINFO).splitlines()
    clocks = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    return statistics.median(clocks) if clocks else None


def _governor() -> str | None:
    return _read(CPUS / "cpu0/cpufreq/scaling_governor") or None


def _gpu() -> str | None:
    query = "clocks.sm,clocks.mem,temperature.gpu,power.draw,clocks_event_reasons.active"
    return output_of(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]) or None


def _read(path: Path) -> str:
    """A small file of the kernel's, or nothing where it does not offer it."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""

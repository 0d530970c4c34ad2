"""Roofline: what this machine can do at most, as it was measured: arithmetic by precision, and memory traffic.

A layer cannot take less time than its arithmetic at the peak of its precision, nor less than its bytes at the bandwidth
of the memory that they come from (Williams, Waterman and Patterson, "Roofline", 2009).
"""

from __future__ import annotations

from pathlib import Path

from trainers.checkpoint import folder_name
from trainers.manifest import Environment, Record, Struct

MEMORY = "memory"


class Peak(Struct, frozen=True, kw_only=True):
    """One graph in one engine: its operations, and the seconds of every run."""

    precision: str  # as `export.costs` names it
    engine: str
    graph: str
    threads: int
    flops: int  # in one run; a multiply-add is 2
    samples_s: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Operations a second in the fastest run: nothing makes a machine faster than it is."""
        return self.flops / min(self.samples_s)


class Stream(Struct, frozen=True, kw_only=True):
    """One pass over arrays of `working_set` bytes in all: the bytes that it reads and writes, and every pass's seconds.

    `level` is the smallest cache that holds the working set, all cores' together where each has its own.
    """

    kernel: str  # copy: a = b; triad: a = b + s c (McCalpin's STREAM)
    threads: int
    working_set: int
    moved: int
    level: str
    samples_s: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Bytes a second in the fastest pass."""
        return self.moved / min(self.samples_s)


class Roofline(Record, frozen=True, kw_only=True):
    """One run of `python -m runtime roofline`."""

    environment: Environment
    caches: dict[str, int]  # bytes of one instance, by level
    peaks: tuple[Peak, ...]
    streams: tuple[Stream, ...]
    unavailable: dict[str, str]  # engine: why it was not asked
    seconds: float  # spent in all
    other_load: float | None = None  # cores that other programs used meanwhile

    def threads(self, wanted: int) -> int:
        """The measured number of threads next to the one wanted."""
        return min({peak.threads for peak in self.peaks}, key=lambda count: (abs(count - wanted), count))

    def peak(self, precision: str, threads: int) -> Peak | None:
        """The fastest of a precision at exactly this number of threads; None where none ran."""
        found = [peak for peak in self.peaks if peak.precision == precision and peak.threads == threads]
        return max(found, key=lambda peak: peak.rate, default=None)

    def stream(self, size: int, threads: int) -> Stream:
        """The faster kernel at the smallest working set that holds `size` bytes, or at the largest measured."""
        sizes = sorted({one.working_set for one in self.streams if one.threads == threads})
        fitting = next((bound for bound in sizes if bound >= size), sizes[-1])
        found = [one for one in self.streams if (one.threads, one.working_set) == (threads, fitting)]
        return max(found, key=lambda one: one.rate)

    def levels(self, threads: int) -> dict[str, float]:
        """Bytes a second by level, of the fastest stream at exactly this number of threads."""
        found: dict[str, float] = {}
        for stream in self.streams:
            if stream.threads == threads:
                found[stream.level] = max(found.get(stream.level, 0.0), stream.rate)
        return found

    def memory(self, threads: int) -> Stream:
        """The faster kernel at the largest working set."""
        return self.stream(max(one.working_set for one in self.streams), threads)

    def limit(self, flops: int, size: int, precision: str, threads: int) -> float | None:
        """The least seconds that these operations and bytes can take; None for a precision that was not measured."""
        peak = self.peak(precision, threads)
        if flops and peak is None:
            return None
        arithmetic = flops / peak.rate if peak else 0.0
        return max(arithmetic, size / self.stream(size, threads).rate)


def path(artifacts: Path, host: str) -> Path:
    """Where a machine's roofline lies."""
    return artifacts / "roofline" / f"{folder_name(host)}.json"


def save(record: Roofline, artifacts: Path) -> Path:
    """Write the record; the one before it is kept under its time."""
    place = path(artifacts, record.environment.host)
    old = Roofline.find(place)
    if old is not None:
        stamp = old.environment.time.replace(":", "").replace("+0000", "Z")
        place.replace(place.with_name(f"{place.stem}-{stamp}.json"))
    record.save(place)
    return place


def find(artifacts: Path, here: Environment) -> Roofline | None:
    """The newest roofline of this machine; None where there is none, or it is of another processor of that name."""
    found = Roofline.find(path(artifacts, here.host))
    same = found is not None and (found.environment.cpu, found.environment.threads) == (here.cpu, here.threads)
    return found if same else None


def caches(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> dict[str, int]:
    """Bytes of one data cache of each level, as Linux lists them; empty elsewhere."""
    found = {}
    for index in sorted(folder.glob("index*")):
        if (index / "type").read_text().strip() != "Instruction":
            size = (index / "size").read_text().strip()
            found[f"L{(index / 'level').read_text().strip()}"] = int(size.removesuffix("K")) * 1024
    return found


def level(size: int, sizes: dict[str, int], threads: int) -> str:
    """The smallest cache that holds `size` bytes; a core has an L1 and an L2 of its own."""
    for name, held in sizes.items():
        if size <= held * (threads if name in ("L1", "L2") else 1):
            return name
    return MEMORY

"""Plan: what a run of `bench` measures, and how long."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from trainers.manifest import Struct

WARM_S = 3.0  # bound of the warm-up before the first round

FEWEST, MOST = 32, 256  # rounds, by default
PROCESSES = 8  # of a row, by default
SECONDS = 4.0  # of a row over all rounds, by default
SAMPLES = 10_000  # of a row at most, by default: few enough to keep them all
AT_LEAST = 2  # samples a turn
FEW_CHECKED = 16  # of the reference's 64 images: enough to tell a wrong answer, not a slightly worse one


class Plan(Struct, frozen=True, kw_only=True):
    """Artifacts x backends x options x threads x batches x regimes.

    `seconds` is the time for one row over all rounds; `timeout` bounds one load or turn.
    """

    backends: tuple[str, ...]
    batches: tuple[int, ...] = (1,)
    threads: tuple[int, ...] = (1,)
    regimes: tuple[str, ...] = ("device",)
    options: tuple[dict[str, str], ...] = ({},)
    device: str = "cpu"
    rounds: int | None = None  # None: as many as the slowest row has time for, from FEWEST to MOST
    processes: int = (
        PROCESSES  # that share a row's rounds, one after the other: each is faster or slower for all of its life
    )
    seconds: float = SECONDS
    at_least: int = AT_LEAST  # samples a turn, of what takes longer than its share of the time
    at_most: int = SAMPLES  # samples of a row
    checked: int | None = None  # reference images that outputs are checked on; None: all
    timeout: float = 300.0
    max_drop: float = 1.0  # percentage points of top-1 that a recommended row may cost
    strict: bool = False  # a row that ran otherwise than its artifact says has failed
    twin: bool = True  # measure the baseline twice, in two workers: what they differ by is noise
    factories: tuple[str, ...] = ()  # FILE.py:FACTORY of the user's own models that may be run
    memory_bytes: int | None = None  # bound on a worker's private memory

    def rounds_of(self, sample_s: float) -> int:
        """How many rounds there are where a sample of the slowest row takes so many seconds.

        Many short turns: a disturbance lasts for a turn or two, and the median forgets those; a machine that changes
        between two speeds is met in both by all. But a turn has samples to throw away, and some to keep.
        """
        affordable = int(self.seconds / ((1 + self.at_least) * max(sample_s, 1e-9)))
        return self.rounds or max(FEWEST, min(MOST, affordable // self.processes * self.processes))

    def renews(self, turn: int, rounds: int) -> bool:
        """Whether new processes take this round and those after it."""
        return turn > 0 and turn * self.processes // rounds != (turn - 1) * self.processes // rounds

    def key(self, artifacts: Iterable[str]) -> str:
        """What a run is continued by: the same plan for the same artifacts, which are named by their sha256."""
        asked = msgspec.json.encode([msgspec.structs.replace(self, timeout=0.0), sorted(artifacts)], order="sorted")
        return hashlib.sha256(asked).hexdigest()[:16]


def sweep(values: Mapping[str, Sequence[str]]) -> tuple[dict[str, str], ...]:
    """Every combination of the values that each option is to take."""
    combinations: list[dict[str, str]] = [{}]
    for key, choices in values.items():
        combinations = [{**made, key: choice} for made in combinations for choice in choices]
    return tuple(combinations)

"""The matrix: every artifact in every engine that loads it, one worker process each, timed in interleaved rounds.

In every round each worker has one turn while the others sleep, so that a machine that speeds up or slows down does so
for all of them, and ratios can be taken round by round. Where memory does not hold all workers they run in heats; the
baseline takes part in each.
"""

from __future__ import annotations

import contextlib
import random
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

from runtime import backends
from runtime.backend import Backend
from runtime.contender import Contender
from runtime.machine import State, observe
from runtime.plan import FEWEST, Plan
from runtime.results import Measurement, Report, find_baseline
from runtime.targets import Target
from trainers.manifest import Environment, UserError, usable_threads

MEMORY_SHARE = 0.8  # of the machine's memory, that one worker may have
OBSERVATIONS, OBSERVED_S = 10, 0.25  # of the machine, spread over the rounds; and how long each is
HEAT_SHARE = 0.6  # of the machine's memory, that the workers of one heat may have together

Progress = Callable[[str, int, int], None]  # what happens now, steps done, steps in all
Rivals = Callable[[int], Sequence[Contender]]  # by the number of threads


class Bench:
    """One run over the whole matrix. A worker that fails becomes a row with its reason; the run goes on."""

    def __init__(
        self, targets: Sequence[Target], plan: Plan, environment: Environment, *, stale: Sequence[str] = (),
        left_out: Sequence[str] = (), known: Report | None = None, rivals: Rivals | None = None,
    ) -> None:  # fmt: skip
        """`rivals` are measured instead of all targets in all of the plan's engines."""
        self._targets, self._plan, self._environment = targets, plan, environment
        self._stale, self._left_out = tuple(stale), tuple(left_out)
        self._known = known.measurements if known else ()
        self._states: list[State] = list(known.states) if known else []
        self._before = known.seconds if known else 0.0
        self._rows: list[Measurement] = []  # of the groups that are done
        self._racing: list[Contender] = []
        self._loaded: list[Contender] = []  # the same, in the order they were loaded
        self._renewals = 0
        self._rivals = rivals or self._matrix
        self._unavailable = {name: reason for name in plan.backends if (reason := unusable(name, plan.device))}

    def run(
        self, progress: Progress = lambda *_: None, after_round: Callable[[Report], None] = lambda _: None
    ) -> Report:
        """Measure; `after_round` is given what there is so far each time a round is over."""
        self._started = time.monotonic()
        groups = [(threads, batch) for threads in self._plan.threads for batch in self._plan.batches]
        for threads in self._plan.threads:
            with contextlib.ExitStack() as stack:
                contenders = self._contenders(threads)
                for contender in contenders:
                    stack.callback(contender.close)
                for batch in self._plan.batches:
                    part = _part(progress, groups.index((threads, batch)), len(groups))
                    self._measure(contenders, batch, part, after_round)
        return self.report(complete=True)

    def report(self, *, complete: bool = False) -> Report:
        """What has been measured so far."""
        racing = chain.from_iterable(contender.rows() for contender in self._racing)
        return Report(
            environment=self._environment, command=shlex.join(sys.orig_argv[1:]), plan=self._plan,
            seconds=round(self._before + time.monotonic() - self._started, 3),
            subjects=tuple(target.subject for target in self._targets), measurements=(*self._rows, *racing),
            unavailable=self._unavailable, stale=self._stale, left_out=self._left_out, states=tuple(self._states),
            complete=complete,
        )  # fmt: skip

    def _contenders(self, threads: int) -> list[Contender]:
        """The baselines first, for every heat needs them, and beside them their twins."""
        plan, rivals = self._plan, self._rivals(threads)
        bases = self._bases(rivals)
        twins = [Contender(base.target, base.backend, base.options, plan, threads=threads, twin=True) for base in bases]
        return [*bases, *(twins if plan.twin else ()), *(rival for rival in rivals if rival not in bases)]

    def _matrix(self, threads: int) -> list[Contender]:
        """Every target in every engine that loads it, with every combination of options."""
        plan = self._plan
        return [
            Contender(target, name, options, plan, threads=threads)
            for target in self._targets
            for name in plan.backends
            if name not in self._unavailable and backends.serves(backends.get(name), target.found)
            for options in own_options(backends.get(name), plan.options)
        ]

    def _bases(self, rivals: Sequence[Contender]) -> list[Contender]:
        """Each model's baseline, if there is one."""
        models = dict.fromkeys(rival.target.subject.model for rival in rivals)
        found = [
            find_baseline([rival for rival in rivals if rival.target.subject.model == model and not rival.twin],
                          lambda rival: (rival.cell(1, "device"), rival.target.subject))
            for model in models
        ]  # fmt: skip
        return [base for base in found if base is not None]

    def _measure(
        self, contenders: Sequence[Contender], batch: int, progress: Progress, after_round: Callable[[Report], None]
    ) -> None:
        """All rows of one batch size: heat after heat, until everyone has taken part."""
        bases, waiting, heat = self._bases(contenders), list(contenders), 0
        while waiting:
            again = bases if heat else []
            self._racing = [*again, *(c for c in waiting if c not in again)]
            waiting = self._load(batch, heat, progress, [*bases, waiting[0]])
            self._rounds(batch, progress, after_round)
            for number, contender in enumerate(self._racing):
                progress(f"batch {batch}: what ran", number, len(self._racing))
                contender.attest()
            over, self._racing = self._racing, []
            self._rows += chain.from_iterable(contender.rows() for contender in over)
            after_round(self.report())
            if waiting or heat:
                for contender in over:
                    contender.close()
            heat += 1

    def _load(self, batch: int, heat: int, progress: Progress, needed: Sequence[Contender]) -> list[Contender]:
        """Load the racing contenders in an order drawn anew, as many as memory holds; returns those left for later.

        Those `needed` take part whatever memory they take, so that every heat gets somewhere.
        """
        racing, taken, left = self._racing, 0, []
        self._loaded, self._renewals = [], 0
        limit = HEAT_SHARE * self._environment.memory_bytes
        total = len(racing) * (1 + (self._plan.rounds or FEWEST))
        for number, contender in enumerate(random.sample(racing, len(racing))):
            if limit and taken > limit and contender not in needed:
                left.append(contender)
                continue
            progress(f"batch {batch}: loading {contender.target.subject.name} in {contender.backend}", number, total)
            contender.load(batch, heat, self._known)
            taken += contender.peak_bytes
            self._loaded.append(contender)
        self._racing = [contender for contender in racing if contender not in left]
        self._settle()
        if len({contender.rounds_done for contender in self._racing if not contender.failed}) > 1:
            self._start_over(batch, heat)
        return [contender for contender in racing if contender in left]

    def _start_over(self, batch: int, heat: int) -> None:
        """Forget what an interrupted run has left of this heat: it had other company, and rounds are pairs only there.

        So it is where memory holds others this time, or an engine has been installed since.
        """
        for contender in self._loaded:
            contender.close()
            contender.load(batch, heat)
        self._settle()

    def _settle(self) -> None:
        """How many rounds this heat has: what was begun, goes on with as many."""
        going = [contender for contender in self._racing if not contender.failed]
        begun = max((contender.rounds for contender in going), default=0)
        rounds = begun or self._plan.rounds_of(max((contender.sample_s for contender in going), default=0.0))
        for contender in self._racing:
            contender.settle(rounds)

    def _renew(self) -> None:
        """New processes for all.

        Who is loaded first gets the memory that others have left: of a dozen equal workers the first third was seen to
        be slower than the last by 1 to 5% (benchmarks/measuring.py, `order`). So all are ended before the first is
        loaded again, and of every two times the second has the first's order reversed: advantages change sides.
        """
        going = [contender for contender in self._loaded if not contender.done]
        for contender in going:
            contender.close()
        self._loaded = random.sample(going, len(going)) if self._renewals % 2 else going[::-1]
        self._renewals += 1
        for contender in self._loaded:
            contender.restart()  # in this thread, with which they end
        with ThreadPoolExecutor(usable_threads() if self._plan.device == "cpu" else 1) as pool:
            list(pool.map(Contender.reload, self._loaded))  # nothing is timed meanwhile
        for contender in self._loaded:
            contender.warm()

    def _rounds(self, batch: int, progress: Progress, after_round: Callable[[Report], None]) -> None:
        """Give everyone one turn a round."""
        order = [contender for contender in self._racing if not contender.done]
        count, rounds = len(order), max((contender.rounds for contender in order), default=0)
        first = min((contender.rounds_done for contender in order), default=rounds)
        for turn in range(first, rounds):
            if turn > first and self._plan.renews(turn, rounds):
                progress(f"batch {batch}: new processes", count * (turn + 1), count * (1 + rounds))
                self._renew()
            if turn % max(1, rounds // OBSERVATIONS) == 0:
                self._states.append(observe(self._plan.device, OBSERVED_S))  # every worker is loaded, and asleep
            random.shuffle(order)  # nobody always runs after the same neighbour
            for number, contender in enumerate(order):
                progress(f"batch {batch}: round {turn + 1} of {rounds}", count * (turn + 1) + number,
                         count * (1 + rounds))  # fmt: skip
                contender.turn()
            after_round(self.report())


def unusable(name: str, device: str) -> str | None:
    """Why a backend cannot run on the device here."""
    return backends.get(name).unusable(device)


def memory_limit(environment: Environment, device: str) -> int | None:
    """A worker's bound on private memory; none on a GPU, whose driver maps far more than it uses."""
    return int(MEMORY_SHARE * environment.memory_bytes) or None if device == "cpu" else None


def check_options(options: Mapping[str, str], names: Sequence[str]) -> None:
    """Raise UserError unless every option is known to one of the backends, with a value that it allows."""
    for key, value in options.items():
        allowed = [backends.get(name).options[key] for name in names if key in backends.get(name).options]
        if not allowed:
            known = sorted({known for name in names for known in backends.get(name).options})
            raise UserError(f"no chosen backend has an option {key!r}; choose from {', '.join(known) or 'none'}")
        if value not in allowed[0]:
            raise UserError(f"--option {key}={value}: choose from {', '.join(allowed[0])}")


def own_options(backend: Backend, combinations: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Of each combination what this backend has, but for what is its default: the row's name tells what differs."""
    own = [
        {key: value for key, value in options.items() if key in backend.options and value != backend.options[key][0]}
        for options in combinations
    ]
    return [options for number, options in enumerate(own) if options not in own[:number]]


def _part(progress: Progress, number: int, parts: int) -> Progress:
    """Progress of one of several equal parts, as progress of the whole."""
    return lambda what, done, total: progress(what, number * total + done, parts * total)

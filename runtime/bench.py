"""The matrix: every artifact in every engine that loads it, one worker process each, timed in interleaved rounds.

In every round each worker has one turn while the others sleep, so that a machine that speeds up or slows down does so
for all of them, and ratios can be taken round by round.
"""

from __future__ import annotations

import contextlib
import random
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from runtime import backends
from runtime.backend import Backend
from runtime.contender import Contender, Plan
from runtime.results import Measurement, Report
from runtime.targets import Target
from trainers.manifest import Environment, UserError
from trainers.quiet import other_load

MEMORY_SHARE = 0.8  # of the machine's memory, that one worker may have

Progress = Callable[[str, int, int], None]  # what happens now, steps done, steps in all


def measure(
    targets: Sequence[Target], plan: Plan, environment: Environment, *, stale: Sequence[str] = (),
    progress: Progress = lambda *_: None,
) -> Report:  # fmt: skip
    """Measure the whole matrix. A worker that fails becomes a row with its reason; the run goes on."""
    started = time.monotonic()
    unavailable = {name: reason for name in plan.backends if (reason := backends.get(name).unusable(plan.device))}
    usable = [name for name in plan.backends if name not in unavailable]
    measurements: list[Measurement] = []
    loads: list[float | None] = []
    with contextlib.ExitStack() as stack:
        contenders = _contenders(targets, usable, plan)
        for contender in contenders:
            stack.callback(contender.close)
        for number, batch in enumerate(plan.batches):
            part = _part(progress, number, len(plan.batches))
            _load(contenders, batch, plan, part)
            loads.append(other_load())  # every worker is loaded, and asleep
            measurements += _rounds(contenders, batch, plan, part)
        loads.append(other_load())
    return Report(
        environment=environment, command=shlex.join(sys.orig_argv[1:]), device=plan.device, threads=plan.threads,
        rounds=plan.rounds, seconds=round(time.monotonic() - started, 3),
        subjects=tuple(target.subject for target in targets), measurements=tuple(measurements),
        unavailable=unavailable, stale=tuple(stale), other_load=max(filter(None, loads), default=None),
    )  # fmt: skip


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


def _contenders(targets: Sequence[Target], usable: Sequence[str], plan: Plan) -> list[Contender]:
    return [
        Contender(target, name, _own_options(backends.get(name), plan.options), plan)
        for target in targets
        for name in usable
        if target.found.kind in backends.get(name).formats
    ]


def _own_options(backend: Backend, options: Mapping[str, str]) -> dict[str, str]:
    """The options this backend has, but for those set to its default: the row's name tells what differs."""
    return {key: value for key, value in options.items() if key in backend.options and value != backend.options[key][0]}


def _load(contenders: Sequence[Contender], batch: int, plan: Plan, progress: Progress) -> None:
    """Load everything for one batch size, one after the other."""
    total = len(contenders) * (1 + plan.rounds)
    for number, contender in enumerate(contenders):
        progress(f"batch {batch}: loading {contender.target.subject.name} in {contender.backend}", number, total)
        contender.load(batch)


def _rounds(contenders: Sequence[Contender], batch: int, plan: Plan, progress: Progress) -> list[Measurement]:
    """Give everyone one turn a round."""
    count, order, shuffle = len(contenders), list(contenders), random.Random(0).shuffle  # noqa: S311 (no secret)
    for turn in range(1, plan.rounds + 1):
        shuffle(order)  # nobody always runs after the same neighbour
        for number, contender in enumerate(order):
            progress(f"batch {batch}: round {turn} of {plan.rounds}", count * turn + number, count * (1 + plan.rounds))
            contender.turn()
    return [contender.finish() for contender in contenders]


def _part(progress: Progress, number: int, parts: int) -> Progress:
    """Progress of one of several equal parts, as progress of the whole."""
    return lambda what, done, total: progress(what, number * total + done, parts * total)

"""Trial: one way to train in a process of its own, and the interleaved rounds of several."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from trainers.measure.plan import MEMORY_SHARE, Plan
from trainers.measure.results import Learned, Result, Turns
from trainers.measure.rung import Switches
from trainers.process import Worker, WorkerError

WARM_S = 0.3  # of untimed training before the first turn; at least a few steps
POINTS = 40  # of a training curve
PATIENCE = 10  # learning may take this many times longer than its pace says

Notify = Callable[[str, int], None]  # what is done now, and how many are done


class Trial:
    """Opens, takes turns, learns; whatever kills its worker becomes the reason in `result.error`."""

    def __init__(self, name: str, title: str, switches: Switches, plan: Plan, *, device: str | None = None) -> None:
        self.result = Result(name=name, title=title, device=device or plan.device, switches=switches)
        self._plan = plan
        self._worker: Worker | None = None

    @property
    def alive(self) -> bool:
        return self._worker is not None

    def open(self) -> None:
        """Start the process, build the model, compile it, warm up."""
        plan, result = self._plan, self.result
        limit = plan.memory_bytes or int(MEMORY_SHARE * plan.environment.memory_bytes) or None
        on_gpu = result.device == "cuda"  # whose driver maps far more host memory than it uses
        with self._errors():
            self._worker = Worker(
                "trainers.measure.worker", threads=result.switches.cores, memory_bytes=None if on_gpu else limit
            )
            self._ask(
                "open", model=plan.typed, options=plan.options, recipe=msgspec.to_builtins(plan.recipe), data=plan.data,
                seed=plan.seed, cache=str(plan.cache.resolve()) if plan.cache else None, pack_limit=plan.pack_limit,
                device=result.device, switches=msgspec.to_builtins(result.switches),
                gpu_memory=plan.memory_bytes if on_gpu else None,
            )  # fmt: skip
            self._note(**self._ask("warm", seconds=min(WARM_S, plan.seconds)))

    def turn(self, *, rest: bool) -> tuple[float, ...]:
        """Train for one round's time; returns every step's seconds, none if it failed."""
        steps: tuple[float, ...] = ()
        with self._errors():
            reply = self._ask("turn", seconds=self._plan.seconds / self._plan.rounds, rest=rest)
            steps = tuple(reply["steps_s"])
            self._note(peak_bytes=reply["peak_bytes"])
        return steps

    def learn(self, images: int) -> None:
        """Train from the first weights on this many images, and test."""
        pace = self.result.pace
        assert pace is not None, "turns come first"
        with self._errors():
            reply = self._ask(
                "learn", images=images, test_images=self._plan.test_images(images), points=POINTS,
                timeout=self._plan.timeout + PATIENCE * images / pace.value,
            )  # fmt: skip
            self._note(learned=msgspec.convert(reply["learned"], Learned))

    def note(self, turns: Turns, beside: Sequence[Turns] = (), before: str | None = None) -> None:
        """Keep what the rounds gave, unless someone failed in them."""
        if self.result.error is None and all(turns.rounds_s) and all(all(other.rounds_s) for other in beside):
            self._note(turns=turns, beside=tuple(beside), before=before)
        elif self.result.error is None:
            self._note(error="a contender that it is compared with failed meanwhile; measure again")

    def close(self) -> None:
        """End the process."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _ask(self, do: str, *, timeout: float | None = None, **arguments: Any) -> dict[str, Any]:
        assert self._worker is not None
        return self._worker.ask(do, timeout=timeout or self._plan.timeout, **arguments)

    def _note(self, **changes: Any) -> None:
        self.result = msgspec.structs.replace(self.result, **changes)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except WorkerError as error:
            self._note(error=str(error))
            self.close()


def race(trials: Sequence[Trial], rounds: int, *, rest: bool = False) -> dict[str, Turns]:
    """Give everyone one turn a round while the others sleep; who fails drops out and gets an empty turn.

    The order changes from round to round, so that nobody always runs after the same neighbour.
    """
    taken: dict[str, list[tuple[float, ...]]] = {trial.result.name: [] for trial in trials}
    order, shuffle = list(trials), random.Random(0).shuffle  # noqa: S311 (no secret)
    for _ in range(rounds):
        shuffle(order)
        for trial in order:
            taken[trial.result.name].append(trial.turn(rest=rest) if trial.alive else ())
    return {
        trial.result.name: Turns(
            name=trial.result.name, batch_size=trial.result.switches.batch_size,
            rounds_s=tuple(taken[trial.result.name]),
        )
        for trial in trials
    }  # fmt: skip


def together(
    trials: Sequence[Trial], rounds: int, notify: Notify, *, images: Callable[[list[Result]], int] | None = None
) -> None:
    """Open all, time them in common rounds, let each learn if `images` says from how many, and close them.

    Between turns memory is handed back: all of them together may need more than there is.
    """
    with contextlib.ExitStack() as stack:
        for done, trial in enumerate(trials):
            stack.callback(trial.close)
            notify(f"starting {trial.result.title}", done)
            trial.open()
        notify("taking turns", len(trials))
        turns = race([trial for trial in trials if trial.alive], rounds, rest=True)
        for trial in trials:
            if trial.result.name in turns:
                trial.note(turns[trial.result.name])
        for done, trial in enumerate(trials):
            if images is not None and trial.alive:
                notify(f"learning: {trial.result.title}", done)
                trial.learn(images([other.result for other in trials]))
                trial.close()

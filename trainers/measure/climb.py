"""The climb: each rung adds its technique to the best way so far and is timed beside it and beside the first."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from trainers.measure.plan import Plan
from trainers.measure.results import Result
from trainers.measure.rung import RUNGS, Switches, climbed, unusable
from trainers.measure.switches import fitting_rewrites
from trainers.measure.trial import Notify, Trial, race


def climb(names: Sequence[str], plan: Plan, batches: tuple[int, int], notify: Notify) -> Iterator[Result]:
    """Measure these rungs in order, `batches` being the plain and the larger batch size.

    A rung that fails, or makes training slower, is a row; those after it are built without its technique.
    """
    reasons = unusable(names, plan.device)
    fitting = fitting_rewrites(plan)
    for name in names:
        if any(rewrite not in fitting for rewrite in RUNGS[name].changes.get("rewrites", ())):
            reasons[name] = "the model has nothing that it could rewrite"
    with contextlib.ExitStack() as stack:
        climber = Climber(plan, batches)
        stack.callback(climber.close)
        for done, name in enumerate(names):
            notify(RUNGS[name].title, done)
            reason = reasons.get(name) or climber.already(name)
            yield climber.skip(name, reason) if reason else climber.rung(name)


class Climber:
    """Where the climb stands: the first rung and the best one, both with a sleeping process."""

    def __init__(self, plan: Plan, batches: tuple[int, int]) -> None:
        self._plan, self._batches = plan, batches
        self._switches = Switches(batch_size=batches[0])
        self._first: Trial | None = None
        self._best: Trial | None = None
        self._images = 0

    def rung(self, name: str) -> Result:
        """Measure the technique on top of the best so far, and go on from there if it is no slower."""
        trial = Trial(name, RUNGS[name].title, self._with(name), self._plan)
        others = list(dict.fromkeys(other for other in (self._first, self._best) if other is not None))
        try:
            self._measure(trial, others)
            if trial.result.kept:
                self._best, self._switches = trial, trial.result.switches
                self._first = self._first or trial
        finally:
            for other in (trial, *others):
                if other not in (self._first, self._best):
                    other.close()
        return trial.result

    def already(self, name: str) -> str:
        """Why the technique cannot be told apart from the best way so far; empty where it can."""
        return "part of the best way already" if self._first and self._with(name) == self._switches else ""

    def skip(self, name: str, reason: str) -> Result:
        """A row without a time."""
        return Result(
            name=name, title=RUNGS[name].title, device=self._plan.device, switches=self._with(name), error=reason
        )

    def close(self) -> None:
        for trial in (self._first, self._best):
            if trial is not None:
                trial.close()

    def _measure(self, trial: Trial, others: Sequence[Trial]) -> None:
        trial.open()
        for other in others:
            if not other.alive:  # it failed in an earlier round: once more from the start
                other.open()
        if not trial.alive:
            return
        turns = race([trial, *others], self._plan.rounds)
        trial.note(turns.pop(trial.result.name), list(turns.values()), self._best.result.name if self._best else None)
        if trial.result.pace is not None:
            self._images = self._images or self._plan.images_for(trial.result.pace.value, self._batches)
            trial.learn(self._images)

    def _with(self, name: str) -> Switches:
        return climbed(self._switches, name, self._batches[1])

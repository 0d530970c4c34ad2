"""Search: from many forms and settings to the few that are confirmed against each other.

Successive halving (Jamieson and Talwalkar, Non-stochastic Best Arm Identification and Hyperparameter Optimization,
2016): all are raced briefly, the better ones again for longer. What changes one thing about the leaders is tried next;
accuracy is judged only of what is fast; the last race is a run of `bench` with its defaults.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec.structs import replace

from export.variant import Variant
from runtime import backends, stats
from runtime.backend import BackendError
from runtime.bench import Bench, memory_limit
from runtime.contender import Contender
from runtime.plan import FEW_CHECKED, Plan
from runtime.results import Measurement, Report
from runtime.targets import Target
from runtime.tuning import space
from runtime.tuning.candidate import Candidate, Trace, row_of
from runtime.tuning.forms import Forms
from runtime.tuning.gate import Gate
from runtime.tuning.question import BASELINE, Question
from trainers import cli
from trainers.manifest import CheckFailed, Environment, UserError
from trainers.stats import Estimate

BRIEF = {"rounds": 3, "seconds": 0.3}  # of a row in the first races
LONGER = {"rounds": 6, "seconds": 1.0}
REPLACED = 1.05  # a form with other activations than the user's own counts as so much slower: a brief race errs by that
NEAR = 1.1  # times the latency allowed: a brief race may err by as much
LEADERS, RACED, FINALISTS = 3, 8, 3
CLOSE = 1.5  # times the time of the fastest in a brief race, to be raced again
LIKELY = 1.2  # times the time of the fastest that was judged: a longer race may turn the two round
MAKING, TRYING, JUDGING = 0.45, 0.6, 0.8  # shares of the budget after which no more is begun
YARDSTICK = "onnxruntime"  # what the fp32 file runs in for ratios before the last race

Say = Callable[[str], None]


class Search:
    """One question, answered. `trace` is what is known so far; it is saved whenever something was learned."""

    def __init__(
        self, question: Question, forms: Forms, environment: Environment, *, trace: Trace, path: Path,
        budget_s: float, say: Say, factories: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.question, self._forms, self._environment = question, forms, environment
        self._trace, self.path, self._say, self._factories = trace, path, say, factories
        self._budget_s, self._began = budget_s, time.monotonic()
        self._targets: dict[str, Target] = {}  # by artifact
        self._candidates = {candidate.name: candidate for candidate in trace.candidates}
        self._gate = Gate(forms.job, question.images)

    def run(self) -> Report:
        """Search; the report of the last race, whose rows are `finalists` and the baseline.

        Raises UserError when the model cannot be exported, CheckFailed when no form keeps what was asked.
        """
        question = self.question
        plain = self._made(self._forms.plain)
        if plain is None:
            raise UserError(f"{question.model}: {self._forms.failures[self._forms.name(self._forms.plain)]}")
        self._plain = plain
        self._collect(self._forms.asked)
        self._collect(space.first(self._forms.plain, question.device))
        self._race("screened", self._waiting())
        self._try_around()
        self._race("raced", self._close(), LONGER)
        self._judge()
        if not self.finalists:
            raise CheckFailed(self._why())
        report = self._confirm()
        self._save(complete=True)
        return report

    @property
    def candidates(self) -> list[Candidate]:
        """All of them, the fastest first."""
        return sorted(self._candidates.values(), key=lambda one: one.seconds or float("inf"))

    @property
    def finalists(self) -> list[Candidate]:
        """The fastest (or smallest) that are accurate enough."""
        return [one for one in self._alive() if one.accuracy is not None][:FINALISTS]

    @property
    def confirmed(self) -> list[Candidate]:
        """Those that the last race has timed, and PyTorch eager where it is an engine to search in."""
        return [one for one in self.candidates if one.stage == "confirmed"]

    def target(self, candidate: Candidate) -> Target:
        return self._targets[candidate.artifact]

    @property
    def failures(self) -> dict[str, str]:
        """Forms that could not be made, with the reason."""
        return {**self._trace.failures, **self._forms.failures}

    @property
    def spent_s(self) -> float:
        return self._trace.seconds + time.monotonic() - self._began

    def _time_for(self, share: float) -> bool:
        return time.monotonic() - self._began < share * self._budget_s

    def _collect(self, forms: Sequence[Variant], names: Sequence[str] | None = None) -> None:
        """Make the forms, as long as there is time, and enter each in the engines that load it."""
        for form in forms:
            target = self._made(form) if self._time_for(MAKING) or self._is_entered(form) else None
            if target is None:
                continue
            for backend in names or self.question.engines:
                if backend != BASELINE and backends.serves(backends.get(backend), target.found):
                    self._enter(target, backend, {})

    def _is_entered(self, form: Variant) -> bool:
        return any(one.artifact == self._forms.name(form) for one in self._candidates.values())

    def _made(self, form: Variant) -> Target | None:
        name = self._forms.name(form)
        if name not in self._targets:
            target = self._forms.make(form, self._say)
            if target is None:
                return None
            self._targets[target.subject.name] = target
            return target
        return self._targets[name]

    def _enter(self, target: Target, backend: str, options: space.Options) -> Candidate:
        subject, limit = target.subject, self.question.max_bytes
        one = Candidate(artifact=subject.name, backend=backend, options=options, bytes=subject.bytes)
        if limit is not None and subject.bytes > limit:
            one = replace(one, out=f"{subject.bytes / 1e6:.1f} MB are more than the {limit / 1e6:g} allowed")
        return self._candidates.setdefault(one.name, one)

    def _note(self, candidate: Candidate) -> None:
        self._candidates[candidate.name] = candidate

    def _waiting(self) -> list[Candidate]:
        return [one for one in self._candidates.values() if one.stage == "waiting" and one.out is None]

    def _alive(self) -> list[Candidate]:
        """Those still in the race whose files are at hand, in the order of the metric."""

        def key(one: Candidate) -> tuple[float, float]:
            own = self._targets[one.artifact].subject.is_own_function
            cost = one.cost if own else REPLACED * one.cost
            return (one.bytes, cost) if self.question.metric == "size" else (cost, one.bytes)

        able = [one for one in self._candidates.values()
                if one.out is None and one.faster is not None and one.artifact in self._targets]  # fmt: skip
        limit = self.question.max_latency_s
        return sorted((one for one in able if limit is None or (one.seconds or 0) <= NEAR * limit), key=key)

    def _race(self, stage: str, entered: Sequence[Candidate], length: dict[str, float] = BRIEF) -> None:
        """Time them in interleaved rounds beside the yardstick, and note what came of each."""
        if not entered:
            return
        self._say(f"{stage}: {len(entered)} candidates")
        plain = Candidate(artifact=self._plain.subject.name, backend=YARDSTICK, options={}, bytes=0)
        others = [one for one in entered if one.name != plain.name]
        plan = self._plan(processes=1, twin=False, checked=FEW_CHECKED, **length)
        report = self._bench(plan, [plain, *others])
        yardstick = _row(report, plain)
        if not yardstick.valid:
            raise CheckFailed(f"{plain.name}, which all others are compared with: {yardstick.error}")
        for one in entered:
            row = yardstick if one.name == plain.name else _row(report, one)
            noted = _noted(one, stage, report, row)
            faster = None if noted.out else report.speedup(row) or _speedup(yardstick, row)
            self._note(replace(noted, faster=faster))
        self._save()
        if best := self._alive():
            self._say(f"  best so far: {best[0].name}, {1e3 * (best[0].seconds or 0):.3g} ms")

    def _close(self) -> list[Candidate]:
        """Those that a longer race may still bring to the front."""
        alive = self._alive()
        if self.question.metric == "size":
            return alive[:RACED]
        return [one for one in alive if one.cost <= CLOSE * alive[0].cost][:RACED]

    def _try_around(self) -> None:
        """One change from each of the leaders: settings of their engines, and other forms of the fastest."""
        if not self._time_for(TRYING):
            return
        leaders = [one for one in self._alive() if one.stage != "waiting" and not one.options][:LEADERS]
        for leader in leaders:
            for options in space.settings(leader.backend, self.question.device):
                self._enter(self.target(leader), leader.backend, options)
        if leaders:
            record, forms = self.target(leaders[0]).found.record, self._forms
            assert record is not None, "a form of ours has a record"
            near = space.around(record, has_gelu=forms.has_gelu, from_module=forms.from_module)
            self._collect(list(near), [leaders[0].backend])
        self._race("screened", self._waiting())

    def _judge(self) -> None:
        """Accuracy of the fastest, until enough are fit; what loses too much is tried in a gentler form.

        When the time is over only those that are likely to be as fast as the first: one alone would win by lot.
        """
        waiting = [one.name for one in self._alive()]
        while waiting and len(self.finalists) < FINALISTS:
            if not self._time_for(JUDGING) and not self._is_likely(self._candidates[waiting[0]]):
                break
            one = self._candidates[waiting.pop(0)]
            if one.accuracy is None:
                self._note(self._judged(one))
                self._save()
            one = self._candidates[one.name]
            if one.out is not None and one.accuracy is not None and self._time_for(TRYING):
                waiting[:0] = self._gentler(one)

    def _is_likely(self, one: Candidate) -> bool:
        """Whether it may be as good as the best that was judged; the first one always may."""
        best = next(iter(self.finalists), None)
        return best is None or (self.question.metric != "size" and one.cost <= LIKELY * best.cost)

    def _judged(self, one: Candidate) -> Candidate:
        question = self.question
        self._say(f"judging {one.name}")
        try:
            found = self._gate.judge(self.target(one), one.backend, one.options, question.device, question.threads)
        except (UserError, BackendError) as error:
            return replace(one, stage="judged", out=str(error))
        lost = None if found.within(question.max_drop) else (
            f"loses {found.drop:.2f} points of top-1, {question.max_drop:g} are allowed"
        )  # fmt: skip
        return replace(one, stage="judged", accuracy=found, out=lost)

    def _gentler(self, one: Candidate) -> list[str]:
        """Enter the forms that may lose less than this one; raced with it in place of the time they have not."""
        record = self.target(one).found.record
        assert record is not None
        made = [self._made(form) for form in space.gentler(record.variant)]
        new = []
        for target in made:
            if target is not None:
                new.append(self._enter(target, one.backend, one.options).name)
        self._race("raced", [self._candidates[name] for name in new if self._candidates[name].seconds is None])
        return [name for name in new if self._candidates[name].out is None]

    def _confirm(self) -> Report:
        """The last race: a run of bench, with PyTorch eager as the baseline where there is a module."""
        self._say(f"confirming {len(self.finalists)} of {len(self._candidates)} candidates")
        base, finalists = self._base(), self.finalists
        report = self._bench(self._plan(), [base, *(one for one in finalists if one.name != base.name)])
        if base.backend == BASELINE and BASELINE in self.question.engines:
            finalists.append(replace(base, accuracy=self._gate.perfect))
        for one in finalists:
            self._note(self._within_latency(_noted(one, "confirmed", report, _row(report, one))))
        return report

    def _within_latency(self, one: Candidate) -> Candidate:
        """The same, out where the last race, which is the longest, has it slower than was asked."""
        limit = self.question.max_latency_s
        if limit is None or one.out is not None or one.seconds is None or one.seconds <= limit:
            return one
        return replace(one, out=f"takes {1e3 * one.seconds:.3g} ms, {1e3 * limit:g} are allowed")

    def _why(self) -> str:
        """Why nothing is left to be confirmed, by what came nearest."""
        timed = [one for one in self.candidates if one.seconds is not None]
        nearest = min(timed, key=lambda one: one.accuracy.drop if one.accuracy else float("inf"), default=None)
        if nearest is None:
            said = "; ".join(f"{one.name}: {one.out}" for one in self.candidates if one.out)
            return f"{self.question.model}: nothing could be timed: {said}"
        limit, milliseconds = self.question.max_latency_s, 1e3 * (timed[0].seconds or 0)
        if limit is not None and timed[0].accuracy is None:
            return (f"{self.question.model}: the fastest form, {timed[0].name}, takes {milliseconds:.3g} ms, "
                    f"{1e3 * limit:g} are allowed; allow more with --max-latency")  # fmt: skip
        return (f"{self.question.model}: no form within the limits; the nearest, {nearest.name}, {nearest.out}; allow "
                "more with --max-drop, or a longer --budget")  # fmt: skip

    def _base(self) -> Candidate:
        """What the last race compares with: PyTorch eager, or the fp32 file where there is no module."""
        torch = next((form for form in self._forms.asked if form.opset is None), None)
        target, backend = (self._made(torch), BASELINE) if torch is not None else (self._plain, YARDSTICK)
        assert target is not None, "its weights were the first artifact made"
        return Candidate(artifact=target.subject.name, backend=backend, options={}, bytes=target.subject.bytes)

    def _plan(self, **changes: object) -> Plan:
        question = self.question
        return replace(
            Plan(backends=tuple(dict.fromkeys([*question.engines, YARDSTICK, BASELINE])), batches=(question.batch,),
                 threads=(question.threads,), regimes=(question.regime,), device=question.device,
                 factories=self._factories, max_drop=question.max_drop,
                 memory_bytes=memory_limit(self._environment, question.device)),
            **changes,
        )  # fmt: skip

    def _bench(self, plan: Plan, rivals: Sequence[Candidate]) -> Report:
        """A run of bench over these alone."""
        targets = {one.artifact: self._targets[one.artifact] for one in rivals}

        def contenders(threads: int) -> list[Contender]:
            return [Contender(targets[one.artifact], one.backend, one.options, plan, threads=threads) for one in rivals]

        with cli.progress() as bars:
            task = bars.add_task("racing", total=None)
            return Bench(list(targets.values()), plan, self._environment, rivals=contenders).run(
                lambda what, done, total: bars.update(task, description=what, completed=done, total=total)
            )

    def _save(self, *, complete: bool = False) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace(
            self._trace, seconds=self.spent_s, candidates=tuple(self._candidates.values()), failures=self.failures,
            complete=complete,
        ).save(self.path)  # fmt: skip


def _row(report: Report, one: Candidate) -> Measurement:
    row = row_of(report, one)
    assert row is not None, "everything entered in a race has a row"
    return row


def _speedup(yardstick: Measurement, row: Measurement) -> Estimate | None:
    """How many times faster where the yardstick is no baseline: of a model trained to be int8 there is no fp32 file."""
    if row.heat != yardstick.heat:
        return None
    return stats.speedup(yardstick.rounds_s, row.rounds_s, row.processes)


def _noted(one: Candidate, stage: str, report: Report, row: Measurement) -> Candidate:
    """The candidate with what a race said of it."""
    reason = row.error or row.shortfall or (None if report.verified(row) else "its outputs are not verified")
    if reason is not None:
        return replace(one, stage=stage, out=reason)
    return replace(one, stage=stage, seconds=row.median.value)

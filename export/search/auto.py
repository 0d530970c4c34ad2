"""`--quantize auto`: the int8 variant that saves most time within a budget of accuracy."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from export.search import MAX_DROP, RANKING_IMAGES, SEARCH_IMAGES
from export.search.assign import assign, most_trials, slower
from export.search.damage import rank
from export.search.journal import Journal
from export.search.records import Basis, Measure, Search, Sensitivity, Trial, digest, loss
from export.search.savings import Prices, prices
from export.search.subject import Subject
from export.search.tables import outcome
from export.tables import INFORMATIVE
from trainers import cli
from trainers.manifest import CheckFailed, environment

if TYPE_CHECKING:
    from export.job import Job
    from export.search.judge import Judge
    from export.variant import Variant

FOLDER = "search"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a search may spend: points of accuracy on `images` of the validation split (None: all)."""

    max_drop: float = MAX_DROP
    images: int | None = SEARCH_IMAGES
    costs: tuple[Path, ...] = ()


def resolve(job: Job, variants: Sequence[Variant], budget: Budget) -> list[Variant]:
    """The variants with each int8 one replaced by what a search finds for it; says on stderr what that is.

    Raises CheckFailed where nothing can be int8 within the budget.
    """
    return [
        replace(variant, kept=_announced(job, variant, budget).kept) if variant.precision == "int8" else variant
        for variant in variants
    ]


def search(job: Job, variant: Variant, budget: Budget) -> tuple[Search, Path]:
    """Search an assignment for an int8 variant, or find the same search finished; and where its record lies."""
    began = time.perf_counter()
    subject = Subject.of(job, variant)
    priced = prices(subject, budget.costs)
    ranking, _ = rank(subject, RANKING_IMAGES, priced)
    basis = subject.basis(budget.images)
    stem = job.folder / FOLDER / subject.name
    path = stem.with_name(f"{stem.name}-{digest(basis, ranking.basis, budget.max_drop, priced.costs)}.json")
    known = _known(path, basis)
    if known is not None:
        return known, path
    with subject.judge(budget.images) as judge:
        measure: Measure = "accuracy" if judge.accuracy is not None and judge.accuracy >= INFORMATIVE else "agreement"
        tried = Tried(stem.with_name(f"{stem.name}-{basis.key}.jsonl"), subject, judge, ranking, priced)
        with cli.progress() as bars:
            task = bars.add_task("assignments", total=most_trials(len(ranking.layers)))

            def fits(kept: frozenset[str]) -> bool:
                trial = tried.get(kept)
                bars.update(task, completed=len(tried.trials))
                return loss(trial.scores, measure)[0] <= budget.max_drop

            kept = assign(ranking.layers, fits)
    if len(slower(ranking.layers)) == len(ranking.layers):
        raise CheckFailed(f"{subject.name}: by the costs given, int8 is slower in every layer; leave it in float")
    if len(kept) == len(ranking.layers):
        raise CheckFailed(
            f"{subject.name}: no layer can be int8 within {budget.max_drop:g} points of {measure}; allow more with "
            "--max-drop"
        )
    record = Search(
        model=job.checkpoint.model,
        file=subject.path.name,
        basis=basis,
        costs=priced.costs,
        max_drop=budget.max_drop,
        measure=measure,
        layers=ranking.layers,
        slower=tuple(sorted(slower(ranking.layers))),
        tried=tuple(tried.trials.values()),
        kept=tuple(sorted(kept)),
        seconds=time.perf_counter() - began,
        environment=environment(),
    )
    record.save(path)
    return record, path


class Tried:
    """The assignments tried in this search, in order; each measured once, also over several searches."""

    def __init__(self, path: Path, subject: Subject, judge: Judge, ranking: Sensitivity, priced: Prices) -> None:
        self.journal = Journal(path, Trial, lambda trial: frozenset(trial.kept))
        self.subject, self.judge, self.ranking, self.priced = subject, judge, ranking, priced
        self.trials: dict[frozenset[str], Trial] = {}

    def get(self, kept: frozenset[str]) -> Trial:
        """What is measured with these layers in float; `seconds` are those of this search's costs."""
        names = tuple(sorted(kept))
        measured = self.journal.get(
            kept, lambda: Trial(kept=names, scores=self.judge(self.subject.quantizer.model(kept)))
        )
        self.trials[kept] = replace(measured, seconds=self.priced.seconds(self.ranking.layers, kept))
        return self.trials[kept]


def _known(path: Path, basis: Basis) -> Search | None:
    record = Search.find(path)
    return record if record and record.basis == basis else None


def _announced(job: Job, variant: Variant, budget: Budget) -> Search:
    record, path = search(job, variant, budget)
    print(f"auto: {outcome(record)}: {path}", file=sys.stderr)
    return record

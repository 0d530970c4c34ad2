"""--quick: the artifacts most likely to win, by what their records say, so that a first answer takes minutes."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.plan import Plan
from runtime.results import Subject
from runtime.targets import Target

ARTIFACTS = 8  # besides the baselines, a model
SAMPLES, SECONDS = 100, 3.0  # of a row: whichever comes first
ROUNDS = 20
PROCESSES = 1  # of a row: loading it again is what takes time
BACKENDS_LEFT_OUT = ("aoti",)  # unless named: it compiles for as long as all else takes


def choose(targets: Sequence[Target], plan: Plan) -> tuple[list[Target], list[str]]:
    """The baselines and each model's best others, in the order given; and the names of what is left out.

    Best: within its tolerance and its accuracy budget, then fewest bytes, for what is smaller is moved and computed
    faster.
    """
    chosen: set[str] = set()
    for model in dict.fromkeys(target.subject.model for target in targets):
        subjects = [target.subject for target in targets if target.subject.model == model]
        others = sorted((s for s in subjects if not _is_plain(s)), key=lambda s: (_is_bad(s, plan.max_drop), s.bytes))
        chosen.update(subject.name for subject in subjects if _is_plain(subject))
        chosen.update(subject.name for subject in others[:ARTIFACTS])
    kept = [target for target in targets if target.subject.name in chosen]
    left_out = [target.subject.name for target in targets if target.subject.name not in chosen]
    return kept, left_out + [name for name in BACKENDS_LEFT_OUT if name not in plan.backends]


def _is_plain(subject: Subject) -> bool:
    """A baseline: the checkpoint's own arithmetic, as an exporter wrote it."""
    return subject.is_exact_fp32 and subject.variant is not None and not subject.variant.rewrites


def _is_bad(subject: Subject, max_drop: float) -> bool:
    return not subject.passed or (subject.drop or 0.0) > max_drop

"""About how long each step will take: by a few steps that are timed, and by what such steps usually take."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainers.manifest import UserError

if TYPE_CHECKING:
    from runtime.line.wish import Wish
    from runtime.plan import Plan
    from trainers.estimate import Pace

REPORT_S = 2.0
PROFILE_S = 5.0
ROOF_S, ROOF_QUICK_S, ROOFS = 0.5, 0.1, 30  # of each graph and working set, and about how many of them there are
ROOF_LOADS_S = 6.0  # to start the engines
FORMS = 4  # that `export MODEL --quantize` makes where NNCF is installed
PASSES = 2000  # of PyTorch over an image: what its runs on the images, some of them in int8, are worth
FORM_S = 6.0  # tracing, conversion and checks of one of them
ROWS = 8  # that these forms make in the engines of a CPU
LOAD_S = 2.5  # of a row and process: loading, warming up, what compilers take


def training(model: str, wish: Wish) -> float | None:
    """None where the images cannot be counted yet: they have to be downloaded first."""
    found = _pace(model, wish)
    return found.run_s if found else None


def exporting(model: str, wish: Wish) -> float | None:
    """Of a model that has no checkpoint yet."""
    found = _pace(model, wish)
    return PASSES * found.image_s + FORMS * FORM_S if found else None


@functools.cache
def _pace(model: str, wish: Wish) -> Pace | None:
    from trainers import external
    from trainers.estimate import pace

    with contextlib.suppress(Exception):  # of a model of the user's own any; training itself says what is wrong
        name = external.allow(model)
        return pace(name, wish.data or "synthetic", wish.recipe, wish.device, cache=wish.cache, shape=wish.shape)
    return None


def forms(words: Sequence[str]) -> tuple[int, int, float]:
    """Of the artifacts that `python -m export WORDS…` makes: how many are missing, how many there, and seconds."""
    from export import options, starting
    from export.estimate import estimate_seconds
    from export.job import find_made, recorded_choice
    from export.variant import Variant

    arguments = options.parser().parse_args(words)
    with contextlib.ExitStack() as stack:
        job = starting.start(arguments)
        plain = Variant()
        if recorded_choice(job, plain) is None:  # the exporters have not been compared: nothing is there
            return FORMS, 0, estimate_seconds(job, [plain] * FORMS)
        job, variants = options.opened(arguments, stack)
        missing = [variant for variant in variants if find_made(job, variant) is None]
        return len(missing), len(variants), estimate_seconds(job, missing) if missing else 0.0


def roofing(wish: Wish) -> float:
    """At one number of threads."""
    return ROOF_LOADS_S + ROOFS * (ROOF_QUICK_S if wish.quick else ROOF_S)


def benching(wish: Wish, plan: Plan) -> float:
    """By what is there, or else by what `export --quantize` will leave."""
    from runtime import targets

    rows = 0
    for model in wish.models:
        with contextlib.suppress(UserError):
            rows += 2 * len(targets.resolve([model], wish.artifacts, None)[0])
            continue
        rows += ROWS
    return rows * len(plan.batches) * (plan.seconds + plan.processes * LOAD_S)

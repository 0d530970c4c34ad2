"""Which steps a wish takes: the commands of the three stages, and what of them is done already."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import saved
from runtime.commands.bench import pick_device
from runtime.identity import identity
from runtime.line import estimate
from runtime.line.step import Step
from runtime.line.wish import Wish
from runtime.plan import Plan
from runtime.results import Report
from trainers import data as sources
from trainers import external, models
from trainers.checkpoint import NAME, Checkpoint, folder_name
from trainers.cli import Parser, choose
from trainers.manifest import CheckFailed, Environment, UserError

if TYPE_CHECKING:
    from runtime.tuning.best import Best
    from runtime.tuning.question import Question


def steps(wish: Wish, environment: Environment) -> list[Step]:
    """All of them in order, each with its reason where nothing is left to do.

    Raises UserError on an unknown model, or one that was trained on other data than is asked for.
    """
    made: list[Step] = []
    for model in wish.models:
        made += [*_train(model, wish), _export(model, wish), *([_tune(model, wish, environment)] if wish.tune else [])]
    made.append(_bench(wish, environment, fresh=any(step.command for step in made)))
    made += _roofline(wish, environment)
    fresh = any(step.command for step in made)
    made += [_profile(model, wish, environment, fresh=fresh) for model in wish.models]
    logs = wish.artifacts.parent / "logs"
    report = ("runtime", "report", "--html", str(wish.page), "--logs", str(logs), *wish.place)
    return [*made, Step(stage="report", models=(), command=report, seconds=estimate.REPORT_S)]


def checkpoint_of(model: str, wish: Wish) -> Checkpoint | None:
    """The model's checkpoint, if it has one."""
    path = wish.artifacts / folder_name(model) / f"{NAME}.json"
    return Checkpoint.load(path) if path.is_file() else None


def _train(model: str, wish: Wish) -> list[Step]:
    """Nothing for a model of the user's own without data: export takes its published or random weights."""
    found = checkpoint_of(model, wish)
    if found is not None:
        return [Step(stage="train", models=(model,), note=_described(model, found, wish))]
    if ":" in model and wish.data is None:
        return []
    if ":" not in model:
        choose(model, models.names(), "model")
    else:
        external.allow(model)
    command = ("trainers", model, "--resume", *wish.flags("data", "input", "recipe", "device", "cache"), *wish.place)
    return [Step(stage="train", models=(model,), command=command, seconds=estimate.training(model, wish))]


def _described(model: str, found: Checkpoint, wish: Wish) -> str:
    """The checkpoint in words. Raises UserError where it was trained on other data than the wish names, or where its
    model is in a file that the wish does not name."""
    if external.is_file(found.model) and not external.is_file(model):
        raise UserError(f"{wish.artifacts / folder_name(model)} holds a model of your own code, which a record never "
                        f"runs; in place of {model} give PATH/{found.model}")  # fmt: skip
    if wish.data is not None and not _is_trained_on(wish.data, found):
        holds = (f"was trained on {found.data.path or found.data.name}" if found.provenance == "trained"
                 else f"holds weights that were not trained here ({found.provenance})")  # fmt: skip
        raise UserError(f"{wish.artifacts / folder_name(model)} {holds}; leave --data out, or train it anew with: "
                        f"python -m trainers {model} --data {wish.data}")  # fmt: skip
    top1 = f", top-1 {found.metrics.top1:.2f}%" if found.metrics else ""
    return f"checkpoint {found.weights.sha256[:8]} on {found.data.name}{top1}"


def _is_trained_on(data: str, found: Checkpoint) -> bool:
    """Whether the checkpoint comes of a training on what `--data` names."""
    if found.provenance != "trained":
        return False
    if (name := data.partition(":")[0]) in sources.names():
        return found.data.name == name and found.data.path is None
    return found.data.path == str(Path(data).expanduser().resolve())


def _export(model: str, wish: Wish) -> Step:
    """The forms that `--quantize` makes, and whether they are all there."""
    command = ("export", model, "--quantize", *wish.flags("input", "cache"), *wish.place)
    found = checkpoint_of(model, wish)
    if found is None or _is_adopted_anew(found, wish):
        seconds = estimate.exporting(model, wish)
        return Step(stage="export", models=(model,), command=command, seconds=seconds)
    missing, there, seconds = estimate.forms(command[1:])
    if missing == 0:
        return Step(stage="export", models=(model,), note=f"{there} artifacts, each still what its record says")
    return Step(stage="export", models=(model,), command=command, seconds=seconds)


def _is_adopted_anew(found: Checkpoint, wish: Wish) -> bool:
    """Whether export makes this checkpoint again: of a file of the user's own, which may have changed, or for another
    size of images. A plan runs no such code."""
    return found.provenance != "trained" and (
        external.is_file(found.model) or wish.shape not in (None, found.input_shape)
    )


def _tune(model: str, wish: Wish, environment: Environment) -> Step:
    from runtime.tuning import best

    folder = wish.artifacts / folder_name(model)
    found = best.Best.find(best.path(folder))
    if found is not None and not wish.again and _still_best(model, found, folder, wish, environment):
        return Step(stage="tune", models=(model,), note=f"{found.artifact} in {found.backend}")
    return Step(stage="tune", models=(model,), command=_tuning(model, wish), seconds=wish.budget_s)


def _question(model: str, wish: Wish, environment: Environment) -> Question:
    """What `tune` is asked."""
    from runtime.commands import tune

    parser = Parser()
    tune.flags(parser)
    return tune.question_of(parser.parse_args(_tuning(model, wish)[2:]), folder_name(model), environment)


def _tuning(model: str, wish: Wish) -> tuple[str, ...]:
    """The command that searches."""
    return ("runtime", "tune", model, "--resume", "--max-drop", f"{wish.max_drop:g}", "--budget", f"{wish.budget_s:g}s",
            *wish.flags("device", "cache"), *wish.place)  # fmt: skip


def _still_best(model: str, found: Best, folder: Path, wish: Wish, environment: Environment) -> bool:
    """Whether a recommendation answers the same question of the same weights, on the same machine and packages."""
    from export.artifact import Artifact, current_sha, is_true

    record = Artifact.find((folder / found.file.path).with_suffix(".json"))
    return (
        record is not None and record.parents[0].sha256 == current_sha(folder)
        and is_true(folder / found.file.path, found.file)
        and found.question == _question(model, wish, environment)
        and _is_of_here(found.environment, environment)
    )  # fmt: skip


def _bench(wish: Wish, environment: Environment, *, fresh: bool) -> Step:
    """One run for all models; nothing to do where the newest report is of the same files by the same plan."""
    command = ["runtime", "bench", *wish.models, "--resume", "--max-drop", f"{wish.max_drop:g}", *wish.place]
    command += [*(["--quick"] if wish.quick else []), *wish.flags("batch", "device")]
    plan, quick = _plan(command[2:], environment)
    if not (fresh or wish.again):
        latest = next(iter(saved.newest_first(wish.artifacts / saved.FOLDER)), None)
        known = Report.find(latest) if latest else None
        if known is not None and _is_of(known, plan, wish, environment, quick):
            return Step(stage="bench", models=(), note=f"{latest}, of these very files")
    return Step(stage="bench", models=wish.models, command=tuple(command), seconds=estimate.benching(wish, plan))


def _roofline(wish: Wish, environment: Environment) -> list[Step]:
    """What this machine can do at most, measured once; of a GPU it is not known."""
    from runtime import roofline

    if pick_device(wish.device, environment) != "cpu":
        return []
    if roofline.find(wish.artifacts, environment) is not None:
        return [Step(stage="roofline", models=(), note=f"{roofline.path(wish.artifacts, environment.host)}")]
    command = ["runtime", "roofline", "--threads", str(environment.threads), *wish.place]
    command += ["--seconds", f"{estimate.ROOF_QUICK_S:g}"] if wish.quick else []
    return [Step(stage="roofline", models=(), command=tuple(command), seconds=estimate.roofing(wish))]


def _profile(model: str, wish: Wish, environment: Environment, *, fresh: bool) -> Step:
    """Where the time goes in the form that the report finds fastest."""
    from runtime import profiling

    command = ("runtime", "profile", folder_name(model), *(("--model", model) if external.is_file(model) else ()),
               *wish.flags("device"), *wish.place)  # fmt: skip
    if not (fresh or wish.again):
        with contextlib.suppress(UserError, CheckFailed):  # the command itself says what is wrong
            device = pick_device(wish.device, environment)
            asked = profiling.of_fastest(folder_name(model), wish.artifacts, device)
            if asked.is_answered:
                return Step(stage="profile", models=(model,), note=f"{asked.record}, of this very file")
    return Step(stage="profile", models=(model,), command=command, seconds=estimate.PROFILE_S)


def _plan(words: list[str], environment: Environment) -> tuple[Plan, bool]:
    """What these words of a command line make `bench` do."""
    from runtime.commands import bench

    parser = Parser()
    bench.flags(parser)
    arguments = parser.parse_args(words)
    return bench.plan_of(arguments, environment), arguments.quick


def _is_of(known: Report, plan: Plan, wish: Wish, environment: Environment, quick: bool) -> bool:
    from runtime import quick as choosing
    from runtime import targets

    found, _ = targets.resolve(wish.models, wish.artifacts, None)
    chosen = choosing.choose(found, plan)[0] if quick else found
    same = known.plan.key(subject.sha256 for subject in known.subjects) == plan.key(t.subject.sha256 for t in chosen)
    return same and known.complete and _is_of_here(known.environment, environment)


def _is_of_here(then: Environment, now: Environment) -> bool:
    """Whether something was measured on this machine with these very packages."""
    return identity(then) == identity(now) and then.packages == now.packages

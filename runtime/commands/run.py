"""python -m runtime run: the whole line, from data to a report."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.starting import shape
from runtime.commands.bench import counts
from runtime.commands.tune import duration
from trainers import cli
from trainers import models as built_in
from trainers.checkpoint import folder_name
from trainers.manifest import UserError

if TYPE_CHECKING:
    from runtime.line.driver import Outcome
    from runtime.line.step import Step
    from runtime.line.wish import Wish

SUMMARY = "the whole line: train if there is no checkpoint, export, verify, benchmark, profile, report"
EXAMPLES = """\
examples:
  python -m runtime run simplecnn --quick                       on embedded data, in minutes
  python -m runtime run simplecnn resnet18 convnext --dry-run   what would be done, and how long it takes
  python -m runtime run convnext --data tiny-imagenet-200.zip --recipe fast --tune
  python -m runtime run torchvision:mobilenet_v3_small --max-drop 0.5

What is there and true is used again, so that the same command goes on where it was interrupted.

Exit status 1: a check failed; the last lines say which.
"""
LOGS = "logs"  # under the folder of reports


def flags(parser: argparse.ArgumentParser) -> None:
    named = parser.add_argument("models", nargs="+", metavar="MODEL",
                        help="a model's name, torchvision:NAME, timm:NAME or FILE.py:FACTORY")  # fmt: skip
    cli.names_models(named, *built_in.names())
    parser.add_argument("--data", metavar="NAME|PATH",
                        help="to train on what has no checkpoint yet (default: the embedded data)")  # fmt: skip
    parser.add_argument("--input", type=shape, metavar="CxHxW", help="of a model of your own (default: 3x224x224)")
    parser.add_argument("--recipe", default="default", metavar="NAME", help="to train by, as for python -m trainers")
    parser.add_argument("--max-drop", type=float, default=1.0, metavar="POINTS",
                        help="top-1 that the recommended form may lose, in percentage points (default: 1)")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="measure as bench --quick does")
    parser.add_argument("--batch", type=counts, default=(1,), metavar="1,8,32", help="batch sizes (default: 1)")
    parser.add_argument("--tune", action="store_true", help="also search for the fastest form of each model")
    parser.add_argument("--budget", type=duration, default=900.0, metavar="15m", help="of each search (default: 15m)")
    parser.add_argument("--again", action="store_true", help="measure anew though nothing has changed")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and stop there")
    parser.add_argument("--html", type=Path, metavar="FILE", help="the page (default: DIR/reports/report.html)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="for decoded data (default: the user's cache folder)")
    cli.add_common(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan, do what is left of it, and say what came of it. Exit 1 when a check failed on the way."""
    from runtime.line import driver
    from runtime.line.display import showing
    from runtime.line.steps import steps
    from trainers.manifest import environment

    wish = _wish(arguments)
    planned = steps(wish, environment())
    _show(planned, stderr=arguments.json)
    if arguments.dry_run:
        if arguments.json:
            cli.emit({"steps": _document(planned)})
        return cli.OK
    log = wish.artifacts / "reports" / LOGS / f"{time.strftime('%Y-%m-%dT%H%M%SZ', time.gmtime())}.log"
    try:
        with showing(planned) as display:
            outcome = driver.drive(planned, log, display)
    except KeyboardInterrupt:
        print("the same command goes on from here", file=sys.stderr)
        raise
    return _close(arguments, planned, outcome, wish.page, log)


def _wish(arguments: argparse.Namespace) -> Wish:
    """The flags as a Wish. Raises UserError on a model that the line is not for, or one given twice."""
    from runtime import saved
    from runtime.line.wish import Wish

    files = [model for model in arguments.models if model.endswith(".onnx")]
    if files:
        raise UserError(f"{files[0]}: an ONNX file has nothing to train; find its fastest form with: "
                        f"python -m runtime tune {files[0]}")  # fmt: skip
    models = tuple(dict.fromkeys(arguments.models))
    folders = [folder_name(model) for model in models]
    twice = next((model for model, name in zip(models, folders, strict=True) if folders.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{twice}: two of these models would share the folder {folder_name(twice)}; run them apart, "
                        "each with its own --artifacts")  # fmt: skip
    return Wish(
        models=models, artifacts=arguments.artifacts, data=arguments.data,
        shape=arguments.input,
        page=arguments.html or arguments.artifacts / saved.FOLDER / "report.html", recipe=arguments.recipe,
        device=arguments.device, max_drop=arguments.max_drop, quick=arguments.quick, batches=arguments.batch,
        tune=arguments.tune, budget_s=arguments.budget, again=arguments.again, cache=arguments.cache,
    )  # fmt: skip


def _show(planned: list[Step], *, stderr: bool) -> None:
    """The plan: what is done by which command, what is used again, and about how long it takes."""
    from runtime.line.display import duration as text

    known = [step.seconds for step in planned if step.command and step.seconds is not None]
    unknown = [step.title for step in planned if step.command and step.seconds is None]
    whole = f"about {text(sum(known))}" + (f", and what it takes to {', '.join(unknown)}" if unknown else "")
    rows = [
        (step.title, f"reused: {step.note}" if not step.command else step.shown,
         "" if not step.command else "?" if step.seconds is None else text(step.seconds))
        for step in planned
    ]  # fmt: skip
    cli.table(f"{len(planned)} steps, {whole}", ("step", "what", ">about"), rows, stderr=stderr)


def _close(arguments: argparse.Namespace, planned: list[Step], outcome: Outcome, page: Path, log: Path) -> int:
    """The measured table and its sentences, what was recommended, where all of it lies, and how it went."""
    from runtime import saved

    shown, problems = cli.console(stderr=arguments.json), outcome.problems
    measured = outcome.lost < {*arguments.models}  # else no training came to an end, and the newest report is older
    path = saved.latest(arguments.artifacts) if measured else None
    if path is not None:
        _show_report(path, stderr=arguments.json)
    lines = [*_recommended(arguments, planned), f"page: {page}"] if measured else []
    for line in (*lines, f"log: {log}", *problems):
        shown.print(line, markup=False)
    if arguments.json:
        cli.emit({"report": path and str(path), "page": str(page) if measured else None, "log": str(log),
                  "problems": problems, "steps": _document(planned)})  # fmt: skip
    last = f"FAILED: {len(problems)} of {len(planned)} steps" if problems else f"OK: {len(planned)} steps; see {page}"
    shown.print(last, markup=False)
    return cli.FAILED if problems else cli.OK


def _show_report(path: Path, *, stderr: bool) -> None:
    from runtime.report import summary, table
    from runtime.results import Report

    report = Report.load(path)
    table.show(report, stderr=stderr)
    summary.show(report, path, stderr=stderr)


def _document(planned: list[Step]) -> list[dict[str, Any]]:
    return [{"step": step.title, "command": step.command, "reused": step.note, "about_s": step.seconds}
            for step in planned]  # fmt: skip


def _recommended(arguments: argparse.Namespace, planned: list[Step]) -> list[str]:
    """What the searches recommend, a sentence each."""
    from runtime.tuning import best, tables
    from trainers.checkpoint import folder_name

    models = [model for step in planned if step.stage == "tune" for model in step.models]
    found = [best.Best.find(best.path(arguments.artifacts / folder_name(model))) for model in models]
    return [tables.recommendation(one) for one in found if one is not None]

"""python -m runtime tune: find the fastest form of a model on this machine that is still right."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.tuning.metrics import METRICS
from trainers import cli
from trainers.manifest import UserError

if TYPE_CHECKING:
    from runtime.tuning.best import Best
    from runtime.tuning.question import Question
    from runtime.tuning.search import Search
    from trainers.manifest import Environment

SUMMARY = "find the fastest form of a model on this machine that is still right"
EXAMPLES = """\
examples:
  python -m runtime tune convnext
  python -m runtime tune resnet18 --max-drop 0.2 --budget 5m
  python -m runtime tune resnet18 --metric throughput --batch 32
  python -m runtime tune convnext --metric size --max-latency 30
  python -m runtime tune simplecnn --engines onnxruntime --bundle deploy/
  python -m runtime tune nets.py:make --weights best.pt --input 3x160x96

Forms (exporters, rewrites, activations, precisions, calibrations) are made as they are tried, and kept in
artifacts/MODEL. Accuracy is judged on validation images, in the engine and settings that are timed. The winner is in
artifacts/MODEL/best.json, which runtime.best reads.

Exit status 1: no form keeps what was asked.
"""
UNITS = {"s": 1, "m": 60, "h": 3600}


def flags(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument("model", metavar="MODEL", help="what python -m export takes: a model's name, "
                                "torchvision:NAME, timm:NAME, FILE.py:FACTORY or an .onnx file")  # fmt: skip
    cli.names_models(model)
    parser.add_argument("--model", dest="factory", metavar="FILE.py:FACTORY",
                        help="the file of a model of your own, beside its folder's name")  # fmt: skip
    parser.add_argument("--weights", metavar="pretrained|random|FILE", help="as for python -m export")
    parser.add_argument("--input", metavar="CxHxW", help="as for python -m export")
    parser.add_argument("--calibration-data", metavar="NAME|PATH", help="as for python -m export")
    parser.add_argument("--metric", choices=METRICS, default="latency",
                        help="what to find the best of, within the limits (default: latency)")  # fmt: skip
    parser.add_argument("--max-drop", type=float, default=0.5, metavar="POINTS",
                        help="top-1 that may be lost on validation images (default: 0.5)")  # fmt: skip
    parser.add_argument("--max-latency", type=_above_zero, metavar="MS", help="for a whole batch, in milliseconds")
    parser.add_argument("--max-size", type=_above_zero, metavar="MB", help="of the file, in decimal megabytes")
    parser.add_argument("--batch", type=cli.positive, default=1, metavar="N", help="default: 1")
    parser.add_argument("--threads", type=cli.positive, metavar="N", help="CPU threads (default: all usable cores)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--engines", metavar="A,B", help="default: all that run here but aoti, which compiles long")
    parser.add_argument("--images", type=_count, default=1000, metavar="N|all",
                        help="validation images that accuracy is judged on (default: 1000)")  # fmt: skip
    parser.add_argument("--budget", type=duration, default=900.0, metavar="15m",
                        help="after this much no more is tried; what is known is confirmed (default: 15m)")  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="go on with the same search, interrupted before")
    parser.add_argument("--bundle", type=Path, metavar="DIR",
                        help="also leave a folder with all that running the winner elsewhere takes")  # fmt: skip
    parser.add_argument("--cache", type=Path, metavar="DIR", help="for decoded data (default: the user's cache folder)")
    cli.add_common(parser)


def run(arguments: argparse.Namespace) -> int:
    """Search, say what was found, and leave best.json. Exit 1 where no form keeps what was asked."""
    import contextlib

    from export import options
    from runtime.commands.bench import save
    from runtime.report import summary
    from runtime.tuning import best, tables
    from runtime.tuning.forms import Forms

    if arguments.bundle is not None and arguments.bundle.exists() and any(arguments.bundle.iterdir()):
        raise UserError(f"--bundle {arguments.bundle}: the folder is not empty; give a new one")
    asked = {name: getattr(arguments, name) for name in ("weights", "input", "calibration_data", "cache", "artifacts")}
    with contextlib.ExitStack() as stack:
        job, wanted = options.opened(options.arguments_of(arguments.model, model=arguments.factory, **asked), stack)
        forms = Forms(job, wanted)
        search = _search(arguments, forms)
        try:
            report = search.run()
        except KeyboardInterrupt:
            print("what is known so far is kept; the same command with --resume goes on", file=sys.stderr)
            raise
    winner = best.choose(search.question, report, search.confirmed)
    saved = save(report, arguments.artifacts)
    shown = cli.console(stderr=arguments.json)
    tried = f"{len(search.candidates)} candidates in {search.spent_s:.0f} s"
    title = (f"{search.question.model}: {tried}; ms of the stage it came to, times faster than ONNX Runtime fp32 of "
             "the race before the last")  # fmt: skip
    rows = tables.rows(job.checkpoint.model, search.candidates, winner[0].name if winner else None)
    cli.table(title, tables.COLUMNS, rows, stderr=arguments.json, spare=tables.SPARE)
    shown.print(f"{tables.LEGEND}; all of it: {search.path}", markup=False)
    for line in summary.warnings(report):
        shown.print(line, markup=False)
    for name, reason in search.failures.items():
        shown.print(f"not made: {name}: {reason}", markup=False)
    if winner is None:
        shown.print(
            f"FAILED: no form of {search.question.model} keeps what was asked; the table says why", markup=False
        )
        return cli.FAILED
    found = best.record(search, report, winner, saved)
    found.save(best.path(job.folder))
    if arguments.json:
        cli.emit(found.to_document())
    lines = [tables.recommendation(found), *tables.how(found, job.folder, arguments.artifacts, _factory(arguments)),
             f"report: {saved}"]  # fmt: skip
    for line in lines:
        shown.print(line, markup=False)
    for line in _bundle(arguments.bundle, found, job.folder) if arguments.bundle is not None else ():
        shown.print(line, markup=False)  # after the answer, which a winner that cannot be bundled does not take away
    shown.print(f"OK: {best.path(job.folder)}", markup=False)
    return cli.OK


def _search(arguments: argparse.Namespace, forms: Any) -> Search:
    """The search that the command line asks for, from where an interrupted one stopped if it is to go on."""
    from runtime.commands.bench import factories
    from runtime.tuning.candidate import Trace
    from runtime.tuning.search import Search
    from trainers import manifest

    environment = manifest.environment()
    question = question_of(arguments, forms.job.folder.name, environment)
    key = question.key(forms.job.checkpoint.weights.sha256)
    path = forms.job.folder / "tuning" / f"{key}.json"
    known = Trace.find(path) if arguments.resume else None
    if arguments.resume and known is None:
        print("nothing to resume: no interrupted search like this one; starting", file=sys.stderr)
    trace = known if known is not None and not known.complete else Trace(key=key, seconds=0.0)
    factory = _factory(arguments)
    return Search(question, forms, environment, trace=trace, path=path, budget_s=arguments.budget,
                  factories=factories([factory] if factory else []),
                  say=lambda line: print(line, file=sys.stderr, flush=True))  # fmt: skip


def _factory(arguments: argparse.Namespace) -> str | None:
    """The file of a model of the user's own, as it was typed."""
    from trainers import external

    return next((text for text in (arguments.factory, arguments.model) if text and external.is_file(text)), None)


def question_of(arguments: argparse.Namespace, model: str, environment: Environment) -> Question:
    """The flags as a Question. Raises UserError on an engine, thread count or device that cannot be."""
    from runtime import backends
    from runtime.commands.bench import pick_device
    from runtime.tuning import space
    from runtime.tuning.question import BASELINE, Question

    device, threads = pick_device(arguments.device, environment), arguments.threads or environment.threads
    if threads > environment.threads:
        raise UserError(f"--threads {threads}: this process may use {environment.threads} cores; give at most as many")
    typed = arguments.engines.split(",") if arguments.engines else None
    named = [cli.choose(name.strip(), backends.names(), "engine") for name in typed] if typed else None
    engines = space.engines(device, named)
    if engines == [BASELINE]:
        raise UserError(f"--engines {BASELINE}: it is what the others are compared with; name one more to search in")
    if not engines:
        reasons = "; ".join(f"{name}: {backends.get(name).unusable(device) or 'computes nothing'}"
                            for name in named or ())  # fmt: skip
        raise UserError(f"no engine to search in ({reasons}); see python -m runtime backends")
    return Question(
        model=model, device=device, batch=arguments.batch, threads=threads, engines=tuple(engines),
        metric=arguments.metric, max_drop=arguments.max_drop, images=arguments.images,
        max_latency_s=arguments.max_latency and arguments.max_latency / 1e3,
        max_bytes=arguments.max_size and round(arguments.max_size * 1e6),
    )  # fmt: skip


def _bundle(folder: Path, found: Best, home: Path) -> list[str]:
    from runtime.tuning import bundle

    return bundle.write(folder, found, home)


def duration(text: str) -> float:
    """argparse type: 90s, 15m, 1h, or seconds."""
    matched = re.fullmatch(r"([\d.]+)([smh]?)", text)
    if matched is None or float(matched[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not a time such as 90s, 15m or 1h")
    return float(matched[1]) * UNITS[matched[2] or "s"]


def _above_zero(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return value


def _count(text: str) -> int | None:
    return None if text == "all" else cli.positive(text)


duration.__name__, _above_zero.__name__, _count.__name__ = "time", "number", "count"

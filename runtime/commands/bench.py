"""python -m runtime bench: measure artifacts in every engine that loads them."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime import saved
from runtime.measure import REGIMES
from trainers.checkpoint import folder_name
from trainers.cli import FAILED, OK, add_common, choose, console, emit, names_models, positive
from trainers.manifest import UserError

if TYPE_CHECKING:
    from runtime.plan import Plan
    from runtime.results import Report
    from trainers.manifest import Environment

SUMMARY = "measure artifacts in every engine that loads them"
EXAMPLES = """\
examples:
  python -m runtime bench convnext
  python -m runtime bench convnext --quick                       a first answer in minutes
  python -m runtime bench convnext resnet18 --backends eager,onnxruntime --batch 1,8,32
  python -m runtime bench resnet18 --regime device,end-to-end,throughput --threads 1,2
  python -m runtime bench resnet18 --backends openvino --option precision=own,bf16
  python -m runtime bench path/to/model.onnx --threads 1 --json > report.json

Exit status 1: nothing could be measured, or with --strict a row ran otherwise than its record says.
"""
NOT_BY_DEFAULT = ("null",)  # measured only when named


def flags(parser: argparse.ArgumentParser) -> None:
    named = parser.add_argument(
        "targets", nargs="+", metavar="MODEL|PATH", help="a model's folder under DIR, or a model file"
    )
    names_models(named)
    parser.add_argument("--model", action="append", default=[], metavar="FILE.py:FACTORY",
                        help="the file of a model of your own, for PyTorch's engines: no record runs it")  # fmt: skip
    parser.add_argument("--backends", metavar="A,B", help="engines to measure (default: all but null)")
    parser.add_argument("--batch", type=counts, default=(1,), metavar="1,8,32", help="batch sizes (default: 1)")
    parser.add_argument("--threads", type=counts, metavar="1,2", help="CPU threads (default: all usable cores)")
    parser.add_argument("--streams", metavar="1,2", help="inferences in flight, for the engines with such an option")
    parser.add_argument("--regime", type=regimes, default=("device",), metavar="A,B",
                        help="device: one inference, input and output resident (default); end-to-end: from a host "
                             "array to a host array; throughput: as many in flight as the engine takes")  # fmt: skip
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto",
                        help="auto takes the GPU where there is one")  # fmt: skip
    parser.add_argument("--quick", action="store_true",
                        help="the baselines and the 8 likeliest artifacts, 100 samples or 3 s a row")  # fmt: skip
    parser.add_argument("--rounds", type=positive, metavar="R",
                        help="interleaved rounds (default: 32 to 256, by the slowest row; --quick: 20)")  # fmt: skip
    parser.add_argument("--processes", type=positive, metavar="P",
                        help="that share a row's rounds, one after the other (default: 8; with --quick 1)")  # fmt: skip
    parser.add_argument("--seconds", type=seconds, metavar="S",
                        help="timed seconds a row, over all rounds (default: 4; with --quick 3)")  # fmt: skip
    parser.add_argument("--max-drop", type=float, default=1.0, metavar="POINTS",
                        help="top-1 that a recommended row may lose, in percentage points (default: 1)")  # fmt: skip
    parser.add_argument("--strict", action="store_true",
                        help="exit 1 if a row ran otherwise than its record says")  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="go on with the same run, interrupted before")
    parser.add_argument("--timeout", type=seconds, default=300.0, metavar="S",
                        help="give a row up when one load or turn takes longer (default: 300)")  # fmt: skip
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE",
                        help="an engine's own setting (python -m runtime backends lists them); it becomes part of the "
                             "row's name, and several values with commas are a row each")  # fmt: skip
    add_common(parser)


def counts(text: str) -> tuple[int, ...]:
    """argparse type: comma-separated counts, each once."""
    return tuple(dict.fromkeys(positive(part) for part in text.split(",")))


counts.__name__ = "list of counts"


def regimes(text: str) -> tuple[str, ...]:
    """argparse type: comma-separated regimes, each once."""
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    unknown = [name for name in found if name not in REGIMES]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown regime {unknown[0]!r}; choose from {', '.join(REGIMES)}")
    return found


def seconds(text: str) -> float:
    """argparse type: a time above zero."""
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not a time in seconds")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write the report. Exit 1 when nothing could be measured, or --strict found fault."""
    from runtime import quick, targets
    from runtime.bench import Bench, memory_limit
    from runtime.report import summary, table
    from trainers import manifest
    from trainers.cli import progress

    environment = manifest.environment()
    plan = plan_of(arguments, environment)
    found, stale = targets.resolve(arguments.targets, arguments.artifacts, memory_limit(environment, plan.device))
    found, left_out = quick.choose(found, plan) if arguments.quick else (found, [])
    unfinished = arguments.artifacts / saved.FOLDER / f"unfinished-{plan.key(t.subject.sha256 for t in found)}.json"
    known = _known(unfinished, arguments.resume)
    bench = Bench(found, plan, environment, stale=stale, left_out=left_out, known=known)
    keeper: saved.Keeper[Report] = saved.Keeper(lambda report: report.save(unfinished))
    with progress() as bars:
        task = bars.add_task("starting", total=None)
        try:
            report = bench.run(
                progress=lambda what, done, total: bars.update(task, description=what, completed=done, total=total),
                after_round=keeper.keep,
            )  # fmt: skip
        except KeyboardInterrupt:
            keeper.flush()
            if unfinished.exists():
                print("the rounds so far are kept; the same command with --resume goes on", file=sys.stderr)
            raise
    path = save(report, arguments.artifacts)
    unfinished.unlink(missing_ok=True)
    if arguments.json:
        emit(report.to_document())
    table.show(report, stderr=arguments.json)
    summary.show(report, path, stderr=arguments.json)
    otherwise = plan.strict and any(row.shortfall for row in report.measurements)
    rows = [row for row in report.measurements if not row.cell.twin]
    valid = sum(row.valid for row in rows)
    failed = otherwise or not valid
    said = f"{'FAILED' if failed else 'OK'}: {valid} of {len(rows)} rows measured; report: {path}"
    console(stderr=arguments.json).print(said, markup=False)
    return FAILED if failed else OK


def _known(unfinished: Path, resume: bool) -> Report | None:
    """What an interrupted run of the same plan has left, if it is to go on."""
    from runtime.results import Report

    if not resume:
        return None
    known = Report.find(unfinished)
    if known is None:
        print("nothing to resume: no interrupted run of this command on these artifacts; starting", file=sys.stderr)
    return known


def plan_of(arguments: argparse.Namespace, environment: Environment) -> Plan:
    """The flags as a Plan. Raises UserError on a backend, option, thread count or device that cannot be."""
    from runtime import backends, quick
    from runtime.bench import check_options, memory_limit
    from runtime.plan import FEW_CHECKED, PROCESSES, SECONDS, Plan, sweep

    known = backends.names()
    unasked = {*NOT_BY_DEFAULT, *(quick.BACKENDS_LEFT_OUT if arguments.quick else ())}
    names = arguments.backends.split(",") if arguments.backends else [name for name in known if name not in unasked]
    chosen = tuple(dict.fromkeys(choose(name.strip(), known, "backend") for name in names))
    options = _options([*arguments.option, *([f"streams={arguments.streams}"] if arguments.streams else [])])
    combinations = sweep(options)
    for combination in combinations:
        check_options(combination, chosen)
    device = pick_device(arguments.device, environment)
    rounds, processes, seconds = arguments.rounds, PROCESSES, SECONDS
    fewer: dict[str, Any] = {}
    if arguments.quick:
        rounds, processes, seconds = rounds or quick.ROUNDS, quick.PROCESSES, quick.SECONDS
        fewer = {"at_most": quick.SAMPLES, "checked": FEW_CHECKED}
    return Plan(
        backends=chosen, batches=arguments.batch, device=device, threads=_threads(arguments.threads, environment),
        regimes=arguments.regime, rounds=rounds, processes=arguments.processes or processes,
        seconds=arguments.seconds or seconds, timeout=arguments.timeout,
        options=combinations, max_drop=arguments.max_drop, strict=arguments.strict,
        factories=factories((*arguments.targets, *arguments.model)),
        memory_bytes=memory_limit(environment, device), **fewer,
    )  # fmt: skip


def factories(texts: Iterable[str]) -> tuple[str, ...]:
    """The user's own models among what a command line names, by full paths. Raises UserError on a file not there.

    Only the workers run them.
    """
    from trainers import external

    typed = [text for text in texts if external.is_file(text)]
    for text in typed:
        external.allow(text)
    return tuple(str(Path(text).expanduser().resolve()) for text in typed)


def pick_device(asked: str, environment: Environment) -> str:
    """The device meant: auto is what this machine has. Raises UserError when a GPU is asked for and there is none."""
    if asked == "cuda" and environment.gpu is None:
        raise UserError("--device cuda: no NVIDIA GPU found (nvidia-smi lists none); use --device cpu")
    return ("cuda" if environment.gpu else "cpu") if asked == "auto" else asked


def _threads(asked: tuple[int, ...] | None, environment: Environment) -> tuple[int, ...]:
    most = max(asked or (1,))
    if most > environment.threads:
        raise UserError(f"--threads {most}: this process may use {environment.threads} cores; give at most as many")
    return asked or (environment.threads,)


def _options(pairs: Sequence[str]) -> dict[str, list[str]]:
    """`--option` pairs as the values each key is to take. Raises UserError on one that is not key=value."""
    broken = next((pair for pair in pairs if not all(pair.partition("=")[::2])), None)
    if broken is not None:
        raise UserError(f"--option {broken!r} is not key=value; write for example --option graph=basic")
    return {key: list(dict.fromkeys(values.split(","))) for key, _, values in (pair.partition("=") for pair in pairs)}


def save(report: Report, artifacts: Path) -> Path:
    """Write the report as artifacts/reports/<time>-<host>.json, under a name that is not taken."""
    stamp = report.environment.time.replace(":", "").replace("+0000", "Z")
    stem = f"{stamp}-{folder_name(report.environment.host)}"
    folder = artifacts / saved.FOLDER
    names = (f"{stem}{'' if number == 1 else f'-{number}'}.json" for number in itertools.count(1))
    path = next(folder / name for name in names if not (folder / name).exists())
    report.save(path)
    return path

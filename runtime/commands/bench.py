"""python -m runtime bench: measure artifacts in every engine that loads them."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.checkpoint import folder_name
from trainers.cli import FAILED, OK, add_common, choose, emit, positive
from trainers.manifest import UserError

if TYPE_CHECKING:
    from runtime.contender import Plan
    from runtime.results import Report
    from trainers.manifest import Environment

SUMMARY = "measure artifacts in every engine that loads them"
EXAMPLES = """\
examples:
  python -m runtime bench convnext
  python -m runtime bench convnext resnet18 --backends eager,onnxruntime --batch 1,8,32
  python -m runtime bench path/to/model.onnx --threads 1 --json > report.json
"""
NOT_BY_DEFAULT = ("null",)  # measured only when named


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("targets", nargs="+", metavar="MODEL|PATH", help="a model's folder under DIR, or a model file")
    parser.add_argument("--model", action="append", default=[], metavar="FILE.py:FACTORY",
                        help="the file of a model of your own, for PyTorch's engines: no record runs it")  # fmt: skip
    parser.add_argument("--backends", metavar="A,B", help="engines to measure (default: all but null)")
    parser.add_argument("--batch", type=batches, default=(1,), metavar="1,8,32", help="batch sizes (default: 1)")
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: all usable cores)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto",
                        help="auto takes the GPU where there is one")  # fmt: skip
    parser.add_argument("--rounds", type=positive, default=10, metavar="R", help="interleaved rounds (default: 10)")
    parser.add_argument("--seconds", type=seconds, default=2.0, metavar="S",
                        help="timed seconds a row, over all rounds (default: 2)")  # fmt: skip
    parser.add_argument("--timeout", type=seconds, default=300.0, metavar="S",
                        help="give a row up when one load or turn takes longer (default: 300)")  # fmt: skip
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE",
                        help="an engine's own setting; it becomes part of the row's name")  # fmt: skip
    add_common(parser)


def batches(text: str) -> tuple[int, ...]:
    """argparse type: comma-separated batch sizes, each once."""
    return tuple(dict.fromkeys(positive(part) for part in text.split(",")))


batches.__name__ = "list of batch sizes"


def seconds(text: str) -> float:
    """argparse type: a time above zero."""
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not a time in seconds")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write the report. Exit 1 when nothing could be measured."""
    from runtime import targets
    from runtime.bench import measure, memory_limit
    from runtime.report import table, verdict
    from trainers import manifest
    from trainers.cli import progress

    environment = manifest.environment()
    plan = _plan(arguments, environment)
    found, stale = targets.resolve(arguments.targets, arguments.artifacts, memory_limit(environment, plan.device))
    with progress() as bars:
        task = bars.add_task("starting", total=None)
        report = measure(
            found, plan, environment, stale=stale,
            progress=lambda what, done, total: bars.update(task, description=what, completed=done, total=total),
        )  # fmt: skip
    path = save(report, arguments.artifacts)
    if arguments.json:
        emit(report.to_document())
    table.show(report, stderr=arguments.json)
    verdict.show(report, path, stderr=arguments.json)
    return OK if any(row.valid for row in report.measurements) else FAILED


def _plan(arguments: argparse.Namespace, environment: Environment) -> Plan:
    """The flags as a Plan. Raises UserError on a backend, option, thread count or device that cannot be."""
    from runtime import backends
    from runtime.bench import check_options, memory_limit
    from runtime.contender import Plan

    known = backends.names()
    names = arguments.backends.split(",") if arguments.backends else [n for n in known if n not in NOT_BY_DEFAULT]
    chosen = tuple(dict.fromkeys(choose(name.strip(), known, "backend") for name in names))
    options = _options(arguments.option)
    check_options(options, chosen)
    device = pick_device(arguments.device, environment)
    return Plan(
        backends=chosen, batches=arguments.batch, device=device, threads=_threads(arguments.threads, environment),
        rounds=arguments.rounds, seconds=arguments.seconds, timeout=arguments.timeout, options=options,
        factories=_factories(arguments), memory_bytes=memory_limit(environment, device),
    )  # fmt: skip


def _factories(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The user's own models that this command line names, by full paths. Raises UserError on a file that is not there.

    Only the workers run them.
    """
    from trainers import external

    typed = [text for text in (*arguments.targets, *arguments.model) if external.is_file(text)]
    for text in typed:
        external.allow(text)
    return tuple(str(Path(text).expanduser().resolve()) for text in typed)


def pick_device(asked: str, environment: Environment) -> str:
    """The device meant: auto is what this machine has. Raises UserError when a GPU is asked for and there is none."""
    if asked == "cuda" and environment.gpu is None:
        raise UserError("--device cuda: no NVIDIA GPU found (nvidia-smi lists none); use --device cpu")
    return ("cuda" if environment.gpu else "cpu") if asked == "auto" else asked


def _threads(asked: int | None, environment: Environment) -> int:
    if asked is not None and asked > environment.threads:
        raise UserError(f"--threads {asked}: this process may use {environment.threads} cores; give at most as many")
    return asked or environment.threads


def _options(pairs: Sequence[str]) -> dict[str, str]:
    """`--option` pairs as a mapping. Raises UserError on one that is not key=value."""
    broken = next((pair for pair in pairs if not all(pair.partition("=")[::2])), None)
    if broken is not None:
        raise UserError(f"--option {broken!r} is not key=value; write for example --option graph=basic")
    return dict(pair.split("=", 1) for pair in pairs)


def save(report: Report, artifacts: Path) -> Path:
    """Write the report as artifacts/reports/<time>-<host>.json, under a name that is not taken."""
    stamp = report.environment.time.replace(":", "").replace("+0000", "Z")
    stem = f"{stamp}-{folder_name(report.environment.host)}"
    folder = artifacts / "reports"
    names = (f"{stem}{'' if number == 1 else f'-{number}'}.json" for number in itertools.count(1))
    path = next(folder / name for name in names if not (folder / name).exists())
    report.save(path)
    return path

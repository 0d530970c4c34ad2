"""python -m runtime profile: what each layer of an artifact costs in an engine."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from trainers.cli import OK, add_common, choose, emit, positive
from trainers.manifest import UserError

if TYPE_CHECKING:
    from runtime.profiling import Profile, Question
    from trainers.manifest import Environment

SUMMARY = "time each layer of an artifact by its engine's own profiler, beside its FLOPs, bytes and the roofline"
EXAMPLES = """\
examples:
  python -m runtime profile resnet18                              what the newest report found fastest
  python -m runtime profile resnet18 --backend onnxruntime        its plain fp32 file
  python -m runtime profile resnet18-dynamo-exact-int8 --backend openvino --threads 1
  python -m runtime profile resnet18 --backend eager              Chrome trace and flame graph
  python -m runtime profile resnet18-dynamo-exact-fp32-rewritten --backend onnxruntime --json > fp32.json
  python -m export.sensitivity resnet18 --costs fp32.json

Files go to artifacts/MODEL/profile. "of roof" is how near a layer is to the least time that this machine could take,
as python -m runtime roofline measured it.
"""
TOP = 20


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="ARTIFACT|MODEL", help="a model file, an artifact's name, or a model's")
    parser.add_argument("--backend", metavar="NAME",
                        help="the engine; see python -m runtime backends (default: the model's fastest form and engine "
                        "in the newest report)")  # fmt: skip
    parser.add_argument("--model", action="append", default=[], metavar="FILE.py:FACTORY",
                        help="the file of a model of your own, for PyTorch's engines: no record runs it")  # fmt: skip
    parser.add_argument("--batch", type=positive, metavar="N", help="batch size (default: 1, or the report's)")
    parser.add_argument("--threads", type=positive, metavar="N",
                        help="CPU threads (default: all usable cores, or the report's)")  # fmt: skip
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto",
                        help="auto takes the GPU where there is one")  # fmt: skip
    parser.add_argument("--runs", type=positive, default=20, metavar="N", help="profiled inferences (default: 20)")
    parser.add_argument("--option", action="append", type=pair, default=[], metavar="KEY=VALUE",
                        help="an engine's own setting")  # fmt: skip
    parser.add_argument("--top", type=positive, default=TOP, metavar="N", help=f"rows shown (default: {TOP})")
    add_common(parser)


def pair(text: str) -> tuple[str, str]:
    """argparse type: KEY=VALUE."""
    key, _, value = text.partition("=")
    if not key or not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def run(arguments: argparse.Namespace) -> int:
    """Profile, print the tables, write the files."""
    from runtime import profiling
    from trainers import manifest

    environment = manifest.environment()
    profile = profiling.take(_question(arguments, environment), environment, arguments.artifacts)
    files = profile.save()
    if arguments.json:
        emit(profile.costs().to_document())
    _show(profile, files, arguments)
    return OK


def _question(arguments: argparse.Namespace, environment: Environment) -> Question:
    """The flags as a Question. Raises UserError on an artifact, engine, option or thread count that cannot be."""
    from dataclasses import replace

    from runtime import backends, pick, profilers, profiling, targets
    from runtime.bench import check_options
    from runtime.commands.bench import factories, pick_device
    from runtime.profiling import Question

    device, most, options = pick_device(arguments.device, environment), environment.threads, dict(arguments.option)
    if arguments.threads and arguments.threads > most:
        raise UserError(f"--threads {arguments.threads}: this process may use {most} cores; give at most as many")
    allowed = factories((arguments.target, *arguments.model))
    if arguments.backend is None:
        found = profiling.of_fastest(arguments.target, arguments.artifacts, device, arguments.batch)
        check_options(options, [found.backend])
        return replace(found, threads=arguments.threads or found.threads, runs=arguments.runs, factories=allowed,
                       options={**found.options, **options})  # fmt: skip
    name = choose(arguments.backend, backends.names(), "backend")
    backend = backends.get(name)
    profilers.get(name)
    if reason := backend.unusable(device):
        raise UserError(f"{name} on {device}: {reason}; see what can run with: python -m runtime backends")
    check_options(options, [name])
    path = pick.one(arguments.target, arguments.artifacts, backend.formats)
    pick.check(path, name, backend.formats)
    (target,), _ = targets.resolve([str(path)], arguments.artifacts, None)
    return Question(
        target=target, backend=name, device=device, threads=arguments.threads or most, batch=arguments.batch or 1,
        runs=arguments.runs, options=options, factories=allowed,
    )  # fmt: skip


def _show(profile: Profile, files: list[str], arguments: argparse.Namespace) -> None:
    """Print the tables, what they rest on, and where the files are."""
    from export.inspect.units import milliseconds
    from runtime.report import profile as report
    from trainers.cli import console, table

    aside, question = arguments.json, profile.question
    if question.target.found.kind == "torch":  # the operators' names say what they are; a layer has several
        table(f"{question.title}, by operator", report.OPERATORS, report.by_operator(profile.rows)[: arguments.top],
              stderr=aside)  # fmt: skip
    table(question.title, report.COLUMNS, report.cells(profile.rows, arguments.top), stderr=aside)
    shown = console(stderr=aside)
    total = sum(row.kernel.seconds for row in profile.rows)
    shown.print(f"an inference takes {milliseconds(profile.plain_s)} ms without the profiler; the layers' times add up "
                f"to {milliseconds(total)} ms", markup=False)  # fmt: skip
    if profile.roof is not None:
        threads = profile.roof.threads(question.threads)
        shown.print(f"roof: as measured with {threads} thread{'s' * (threads > 1)} at "
                    f"{profile.roof.environment.time}", markup=False)  # fmt: skip
    elif question.device == "cpu":
        shown.print("no roof: run python -m runtime roofline", markup=False)
    shown.print(f"files: {', '.join(files)}", markup=False)

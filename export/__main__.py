"""python -m export MODEL: write a checkpoint as ONNX files, each verified against PyTorch and recorded."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING

from export import options, starting
from export.precision import PRECISIONS
from export.search import flags
from trainers import cli
from trainers.allocator import keep_freed_memory
from trainers.manifest import CheckFailed, UserError

if TYPE_CHECKING:
    from export.artifact import Artifact
    from export.job import Job
    from export.variant import Variant


def main() -> int:
    arguments = options.parser().parse_args()
    with contextlib.ExitStack() as stack:
        if arguments.training and arguments.model and arguments.model.endswith(starting.ONNX_FILE):
            raise UserError("--training: an ONNX file has no training mode; leave it out")
        job, variants = options.opened(arguments, stack)
        if flags.asked(arguments):
            variants = flags.search(arguments, job, variants)
        artifacts, problems = _export(arguments, job, variants)
    if arguments.training:
        problems += _training(job, arguments.opset)
    return _report(job, artifacts, problems, arguments.json)


def _training(job: Job, opset: int) -> list[str]:
    """Leave the graph of the training mode; what was wrong."""
    from export import training

    try:
        path = training.write(job, opset)
    except UserError as error:
        return [f"training graph: {error}"]
    print(f"training graph, to look at and not to run: netron {path}", file=sys.stderr)
    return []


def _announce(job: Job, variants: list[Variant], json: bool) -> None:
    """List what will be made, with expected sizes and time, before the work starts."""
    from export.estimate import estimate_seconds, estimate_size

    rows = [(v.name(job.checkpoint.model), cli.megabytes(estimate_size(job.checkpoint, v))) for v in variants]
    minutes = estimate_seconds(job, variants) / 60
    cli.table(
        f"{len(variants)} artifacts, about {minutes:.0f} min"
        if minutes >= 1.5
        else f"{len(variants)} artifacts, about {60 * minutes:.0f} s",
        ("variant", ">about"),
        rows,
        stderr=json,
    )


def _export(arguments: argparse.Namespace, job: Job, variants: list[Variant]) -> tuple[list[Artifact], list[str]]:
    """Make what is missing; a variant that cannot be made is a problem of its own, not the end of the others."""
    from export import calibration
    from export.job import find_made

    missing = [variant for variant in variants if find_made(job, variant) is None]
    if any(PRECISIONS[variant.precision].calibrated for variant in missing):
        calibration.check(
            *job.calibration, len(job.checkpoint.classes)
        )  # images that cannot serve are refused before any work
    if missing and (arguments.all or arguments.grid) and job.file is None:
        _announce(job, missing, arguments.json)
    if missing:
        keep_freed_memory()
    artifacts, problems = [], []
    for number, variant in enumerate(variants, 1):
        name = variant.name(job.checkpoint.model)
        print(f"[{number}/{len(variants)}] {name}", file=sys.stderr, flush=True)
        try:
            artifacts.append(find_made(job, variant) or _made(job, variant))
        except CheckFailed as error:
            problems.append(str(error))
        except UserError as error:
            if len(variants) <= 2:
                raise
            problems.append(f"{name}: {error}")
    return artifacts, problems


def _made(job: Job, variant: Variant) -> Artifact:
    from export.pipeline import export  # with all its frameworks: only where something has to be made

    return export(job, variant)


def _report(job: Job, artifacts: list[Artifact], problems: list[str], json: bool) -> int:
    """The table, the problems, and one last line that says how it went."""
    from export import tables

    failed = [a for a in artifacts if not a.parity.passed]
    problems = problems + [f"{a.variant.name(a.model)}: {a.parity.reason}" for a in failed]
    problems += [f"{a.variant.name(a.model)}: made again it {a.reproduced}" for a in artifacts if not a.reproducible]
    if artifacts:
        tables.show(artifacts, stderr=json)
    for problem in problems:
        print(f"  {problem}", file=sys.stderr)
    if json:
        cli.emit({"artifacts": [a.to_document() for a in artifacts], "problems": problems})
    last = (
        f"FAILED: {len(problems)} of {len(artifacts) + len(problems) - len(failed)} variants"
        if problems
        else f"OK: {len(artifacts)} artifacts in {job.folder}; look at one with: netron "
        f"{job.folder / max(reversed(artifacts), key=lambda artifact: artifact.kind == 'onnx').file.path}"
    )
    print(last, file=sys.stderr if json else sys.stdout)
    return cli.FAILED if problems else cli.OK


if __name__ == "__main__":
    cli.run(main)

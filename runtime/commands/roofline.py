"""python -m runtime roofline: measure what this machine can do at most."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from trainers.cli import OK, add_common, emit, positive
from trainers.manifest import UserError

if TYPE_CHECKING:
    from runtime.roofline import Roofline

PRECISIONS = ("fp32", "bf16", "int8")
SUMMARY = "measure this machine's peak arithmetic by precision, and its memory's bandwidth"
EXAMPLES = """\
examples:
  python -m runtime roofline
  python -m runtime roofline --threads 1,4 --json > roofline.json

Peaks are those of large products and convolutions in whichever engine runs them fastest. The record goes to
artifacts/roofline/HOST.json, where python -m runtime profile finds it.
"""


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=numbers, metavar="1,2", help="default: 1, 2, 4 … up to all usable cores")
    parser.add_argument("--seconds", type=float, default=0.5, metavar="S",
                        help="time for each graph and working set (default: 0.5)")  # fmt: skip
    add_common(parser)


def numbers(text: str) -> tuple[int, ...]:
    """argparse type: comma-separated numbers, each once."""
    return tuple(dict.fromkeys(positive(part) for part in text.split(",")))


numbers.__name__ = "list of numbers"


def run(arguments: argparse.Namespace) -> int:
    """Measure, print two tables, write the record."""
    from runtime import ceilings, roofline
    from trainers import manifest
    from trainers.cli import console, progress

    environment = manifest.environment()
    most = environment.threads
    asked = arguments.threads or ceilings.counts(most)
    if max(asked) > most:
        raise UserError(f"--threads {max(asked)}: this process may use {most} cores; give at most as many")
    manifest.probe(roofline.path(arguments.artifacts, environment.host).parent)
    with progress() as bars:
        task = bars.add_task("starting", total=None)
        record = ceilings.measure(
            environment, asked, arguments.seconds,
            lambda what, done, total: bars.update(task, description=what, completed=done, total=total),
        )  # fmt: skip
    path = roofline.save(record, arguments.artifacts)
    if arguments.json:
        emit(record.to_document())
    show(record, stderr=arguments.json)
    console(stderr=arguments.json).print(f"roofline: {path}", markup=False)
    return OK


def show(record: Roofline, *, stderr: bool) -> None:
    """Print the peaks and the bandwidths."""
    from export.inspect.units import si
    from trainers.cli import console, table
    from trainers.quiet import NOISY

    threads = sorted({peak.threads for peak in record.peaks})
    rows = [
        [precision, str(count), f"{best.rate / 1e9:.0f}", best.engine, best.graph]
        for precision in PRECISIONS
        for count in threads
        if (best := record.peak(precision, count))
    ]
    title = f"Peaks of {record.environment.cpu} (a multiply-add is 2 operations)"
    table(title, ("precision", "threads>", "GFLOP/s>", "in", "graph"), rows, stderr=stderr)
    lines = [
        [si(one.working_set, "B"), one.level, str(one.threads), one.kernel, f"{one.rate / 1e9:.1f}"]
        for one in sorted(record.streams, key=lambda one: (one.threads, one.working_set))
    ]
    table("Bandwidth", ("working set>", "fits", "threads>", "kernel", "GB/s>"), lines, stderr=stderr)
    shown = console(stderr=stderr)
    for what, reason in record.unavailable.items():
        shown.print(f"not measured: {what}: {reason}", markup=False)
    if (record.other_load or 0.0) >= NOISY:
        shown.print(f"warning: other programs used {record.other_load:.1f} cores meanwhile: measure again on a quiet "
                    "machine", markup=False)  # fmt: skip

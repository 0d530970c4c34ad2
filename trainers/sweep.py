"""python -m trainers.sweep MODEL: throughput, step time and peak memory by batch size, and the sweet spot."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from trainers import cli
from trainers.measure.plan import add_flags, batches

if TYPE_CHECKING:
    from trainers.measure.results import Sweep

EXAMPLES = """\
examples:
  python -m trainers.sweep resnet18
  python -m trainers.sweep convnext --set size=64 --batch-sizes 8,16,32,64
  python -m trainers.sweep simplecnn --batch-sizes 32,64,128 --seconds 0.5 --memory-limit 4G

Trained as the model's recipe says (--set precision=fp32 and the like change it), from packed images. Each batch size
has a process of its own; they take turns. One that runs out of memory is a row that says so. The sweet spot is the
smallest batch within 3% of the best throughput. Record, CSV and picture go to artifacts/<model>/sweep/. Ctrl-C: what
was measured is lost; earlier records stay.
"""


def parser() -> cli.Parser:
    made = cli.Parser(
        prog="python -m trainers.sweep", description="Measure training at several batch sizes.", epilog=EXAMPLES
    )
    made.add_argument("--batch-sizes", type=batches, default=(16, 32, 64, 128, 256, 512), metavar="A,B",
                      help="(default: 16,32,64,128,256,512)")  # fmt: skip
    add_flags(made, seconds=2.0, rounds=5)
    return made


def main() -> int:
    arguments = parser().parse_args()
    sweep, stem = run(arguments)
    if arguments.json:
        best = sweep.sweet_spot
        cli.emit(sweep.to_document() | {"sweet_spot": best.switches.batch_size if best else None})
    show(sweep, stem, stderr=arguments.json)
    return cli.OK if sweep.sweet_spot else cli.FAILED


def run(arguments: argparse.Namespace) -> tuple[Sweep, Path]:
    """Measure and write the files; returns their common path."""
    from trainers.manifest import write_atomic
    from trainers.measure import chart, plan, tables
    from trainers.measure.records import place
    from trainers.measure.results import Sweep
    from trainers.measure.switches import tuned
    from trainers.measure.trial import Trial, together
    from trainers.quiet import other_load

    planned = plan.make(arguments, owned=frozenset({"batch_size"}))
    switches = tuned(planned)
    trials = [
        Trial(f"batch-{size}", f"batch {size}", msgspec.structs.replace(switches, batch_size=size), planned)
        for size in arguments.batch_sizes
    ]
    load, started = other_load(), time.monotonic()
    with cli.progress() as bars:
        task = bars.add_task("starting", total=len(trials))
        together(trials, planned.rounds, lambda what, done: bars.update(task, description=what, completed=done))
    sweep = Sweep(
        **plan.described(planned), device=planned.device, seconds=round(time.monotonic() - started, 3),
        results=tuple(trial.result for trial in trials), other_load=load,
    )  # fmt: skip
    stem = place(arguments.artifacts, arguments.name or planned.model, "sweep", sweep.environment)
    write_atomic(stem.with_suffix(".csv"), tables.sweep_csv(sweep).encode())
    if sweep.sweet_spot:
        chart.sweep(sweep, stem.with_suffix(".png"))
    sweep.save(stem.with_suffix(".json"))
    return sweep, stem


def show(sweep: Sweep, stem: Path, *, stderr: bool) -> None:
    """The table, the sweet spot and where the files are."""
    from trainers.measure import tables

    title = f"{sweep.model} on {sweep.data.name}, {sweep.device}, {sweep.rounds} rounds"
    cli.table(title, tables.SWEEP, tables.sweep_rows(sweep), stderr=stderr)
    shown, best = cli.console(stderr=stderr), sweep.sweet_spot
    if best is None or best.pace is None:
        shown.print("no batch size could be measured; the rows say why", markup=False)
    else:
        shown.print(
            f"sweet spot: batch {best.switches.batch_size}, {tables.number(best.pace.value)} images/s; the smallest "
            "within 3% of the best",
            markup=False,
        )
    shown.print(f"{stem}.json, .csv, .png", markup=False)


if __name__ == "__main__":
    cli.run(main)

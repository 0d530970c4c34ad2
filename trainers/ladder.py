"""python -m trainers.ladder MODEL: what each training technique is worth on this machine, rung by rung."""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers import cli
from trainers.manifest import UserError
from trainers.measure import rung
from trainers.measure.plan import add_flags, add_images, batches

if TYPE_CHECKING:
    from trainers.measure.results import Ladder

OWNED = frozenset({"batch_size", "precision", "channels_last", "compile", "rewrites", "keep_memory"})
BATCHES = {"cpu": (32, 128), "cuda": (128, 512)}
EXAMPLES = f"""\
examples:
  python -m trainers.ladder resnet18
  python -m trainers.ladder convnext --set size=64 --images 2048
  python -m trainers.ladder simplecnn --rungs one-thread,all-threads,large-batch --seconds 0.5

rungs, from the plainest script up: {", ".join(rung.RUNGS)}

Each rung adds its technique to the best way so far and takes turns, in a process of its own, with that and with the
first. A rung that makes training slower is a row, and is left out of those that follow. Then each learns anew from the
same images and is tested. The record, CSV and picture go to artifacts/<model>/ladder/; python -m trainers MODEL
--recipe auto trains by it. Ctrl-C: what was measured is lost; earlier records stay.
"""


def parser() -> cli.Parser:
    made = cli.Parser(
        prog="python -m trainers.ladder",
        description="Measure what each training technique is worth here.",
        epilog=EXAMPLES,
    )
    made.add_argument("--rungs", metavar="A,B", help="these only, in the table's order (default: all)")
    made.add_argument("--batch-sizes", type=batches, metavar="SMALL,LARGE",
                      help="before and from the rung large-batch on (default: 32,128; on a GPU 128,512)")  # fmt: skip
    made.add_argument("--logs", type=Path, default=Path("logs"), metavar="DIR",
                      help="for TensorBoard: DIR/<model>/original and optimized (default: logs)")  # fmt: skip
    add_images(made)
    add_flags(made, seconds=1.5, rounds=5)
    return made


def main() -> int:
    arguments = parser().parse_args()
    ladder, stem = run(arguments)
    if arguments.json:
        cli.emit(document(ladder))
    show(ladder, stem, arguments)
    return cli.OK if ladder.first else cli.FAILED


def run(arguments: argparse.Namespace) -> tuple[Ladder, Path]:
    """Climb, and write the record, the CSV, the picture and the TensorBoard runs; returns their common path."""
    names = rung.selected(arguments.rungs)
    if arguments.batch_sizes and len(arguments.batch_sizes) != 2:
        raise UserError("--batch-sizes takes a small and a larger one; write for example --batch-sizes 32,128")

    from trainers.manifest import write_atomic
    from trainers.measure import chart, plan, tables
    from trainers.measure.climb import climb
    from trainers.measure.records import place
    from trainers.measure.results import Ladder
    from trainers.quiet import other_load

    planned = plan.make(arguments, owned=OWNED)
    load, started = other_load(), time.monotonic()
    with cli.progress() as bars:
        task = bars.add_task("starting", total=len(names))
        climbing = climb(
            names, planned, arguments.batch_sizes or BATCHES[planned.device],
            lambda title, done: bars.update(task, description=title, completed=done),
        )  # fmt: skip
        results = []
        for result in climbing:
            results.append(result)
            pace = f"{tables.number(result.pace.value)} images/s" if result.pace else "not measured"
            print(f"{result.name}: {pace}{f': {result.error}' if result.error else ''}", file=sys.stderr, flush=True)
    ladder = Ladder(
        **plan.described(planned), device=planned.device, seconds=round(time.monotonic() - started, 3),
        results=tuple(results), other_load=load,
    )  # fmt: skip
    stem = place(arguments.artifacts, arguments.name or planned.model, "ladder", ladder.environment)
    write_atomic(stem.with_suffix(".csv"), tables.ladder_csv(ladder).encode())
    chart.ladder(ladder, stem.with_suffix(".png"))
    _boards(ladder, arguments.logs / stem.parent.parent.name)
    ladder.save(stem.with_suffix(".json"))
    return ladder, stem


def _boards(ladder: Ladder, folder: Path) -> None:
    from trainers.measure import board

    began = datetime.datetime.fromisoformat(ladder.environment.time).timestamp()
    for name, result in (("original", ladder.first), ("optimized", ladder.best)):
        if result is not None:
            board.write(folder / name, result, began)


def document(ladder: Ladder) -> dict[str, Any]:
    """The record with what is derived from it: `best`, `best_ratio` and each rung's `ratios`."""
    import msgspec

    ratios = {
        result.name: {"first": msgspec.to_builtins(ladder.ratio(result)),
                      "before": msgspec.to_builtins(result.ratio_before), "kept": result.kept, "error": result.error}
        for result in ladder.results
    }  # fmt: skip
    best = ladder.best
    return ladder.to_document() | {
        "best": best.name if best else None, "best_ratio": msgspec.to_builtins(ladder.best_ratio), "ratios": ratios,
    }  # fmt: skip


def show(ladder: Ladder, stem: Path, arguments: argparse.Namespace) -> None:
    """The table and the closing lines."""
    from trainers.measure import tables

    learned = next((result.learned for result in ladder.results if result.learned), None)
    test = f"; loss and top-1 on {learned.test_images} test images after {learned.images}" if learned else ""
    title = f"{ladder.model} on {ladder.data.name}, {ladder.device}, {ladder.rounds} rounds{test}"
    rows = tables.ladder_rows(ladder)
    cli.table(title, tables.LADDER, rows, stderr=arguments.json)
    shown = cli.console(stderr=arguments.json)
    for line in closing(ladder, stem, arguments.logs):
        shown.print(line, markup=False)


def closing(ladder: Ladder, stem: Path, logs: Path) -> list[str]:
    """What the table says, in words: what did not help, the best way, where the files are."""
    from trainers.measure.tables import described, number
    from trainers.quiet import NOISY

    best, first, ratio = ladder.best, ladder.first, ladder.best_ratio
    if best is None or first is None or ratio is None or best.pace is None:
        return ["nothing could be measured; the rows say why"]
    lines = []
    if ladder.other_load and ladder.other_load >= NOISY:
        lines.append(f"DISTURBED: other programs used {ladder.other_load:.1f} cores; measure again on a quiet machine")
    unhelpful = ladder.unhelpful()
    neutral = [result for result in unhelpful if result.kept]
    slower = [result for result in unhelpful if not result.kept]
    if neutral:
        lines.append(f"no clear gain here: {described(neutral, [r.ratio_before for r in neutral])}")
    if slower:
        lines.append(f"slower here, left out: {described(slower, [r.ratio_before for r in slower])}")
    lines.append(
        f"best: {best.name}, {number(best.pace.value)} images/s, {ratio.value:.2f} times {first.name} (95% interval "
        f"{ratio.low:.2f} to {ratio.high:.2f})"
    )
    files = f"{stem}.json, .csv, .png; tensorboard --logdir {logs / stem.parent.parent.name}"
    return [*lines, files]


if __name__ == "__main__":
    cli.run(main)

"""python -m trainers.experiments MODEL: a named set of ways to train, from one CPU thread to compiled AMP."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from trainers import cli
from trainers.measure.plan import add_flags, add_images, batches

if TYPE_CHECKING:
    from trainers.measure.plan import Plan
    from trainers.measure.results import Experiments, Result
    from trainers.measure.rung import Switches
    from trainers.measure.trial import Notify

CPU, GPU, SWEEP, MATRIX = "cpu", "gpu", "gpu-amp-sweep", "compile-and-amp"
NO_GPU = "needs an NVIDIA GPU"
EXAMPLES = """\
examples:
  python -m trainers.experiments resnet18
  python -m trainers.experiments convnext --set size=64 --images 1024
  python -m trainers.experiments simplecnn --seconds 0.5 --images 512

The set: the CPU with one thread, and with all threads and loader workers; the GPU in fp32, and by AMP at each of
--batch-sizes and at the best of them; and plain, compiled, AMP, and both, on the GPU if there is one. Rows of a group
take turns. Record and CSV go to artifacts/<model>/experiments/. Ctrl-C: what was measured is lost; earlier records
stay.
"""


def parser() -> cli.Parser:
    made = cli.Parser(
        prog="python -m trainers.experiments", description="Measure a named set of ways to train.", epilog=EXAMPLES
    )
    made.add_argument("--batch-size", type=cli.positive, metavar="B",
                      help="images a step but in the AMP sweep (default: 32 on the CPU, 128 on a GPU)")  # fmt: skip
    made.add_argument("--batch-sizes", type=batches, default=(64, 128, 256, 512, 1024), metavar="A,B",
                      help="of the AMP sweep on a GPU (default: 64,128,256,512,1024)")  # fmt: skip
    add_images(made)
    add_flags(made, seconds=2.0, rounds=5)
    return made


def main() -> int:
    arguments = parser().parse_args()
    record, stem = run(arguments)
    if arguments.json:
        cli.emit(record.to_document())
    show(record, stem, stderr=arguments.json)
    return cli.OK if any(result.valid for group in record.groups.values() for result in group) else cli.FAILED


def run(arguments: argparse.Namespace) -> tuple[Experiments, Path]:
    """Measure every group and write the files; returns their common path."""
    from trainers.manifest import write_atomic
    from trainers.measure import plan, tables
    from trainers.measure.records import place
    from trainers.measure.results import Experiments
    from trainers.quiet import other_load

    owned = frozenset({"batch_size", "precision", "compile", "rewrites", "keep_memory", "channels_last"})
    planned = plan.make(arguments, owned=owned)
    load, started = other_load(), time.monotonic()
    with cli.progress() as bars:
        task = bars.add_task("starting", total=None)
        groups = measure(planned, arguments, lambda what, _: bars.update(task, description=what))
    record = Experiments(
        **plan.described(planned), seconds=round(time.monotonic() - started, 3), groups=groups, other_load=load
    )
    stem = place(arguments.artifacts, arguments.name or planned.model, "experiments", record.environment)
    write_atomic(stem.with_suffix(".csv"), tables.experiments_csv(record).encode())
    record.save(stem.with_suffix(".json"))
    return record, stem


def measure(plan: Plan, arguments: argparse.Namespace, notify: Notify) -> dict[str, tuple[Result, ...]]:
    """All groups, in the order of the table; those that need a GPU are rows with that reason where there is none."""
    from trainers.measure.results import sweet_spot
    from trainers.measure.rung import Switches

    on_gpu = plan.device == "cuda"
    size = arguments.batch_size or (128 if on_gpu else 32)
    batches = [size] if not on_gpu else [size, *arguments.batch_sizes]
    group = Group(plan, batches, notify)
    plain = Switches(batch_size=size)
    worked = msgspec.structs.replace(plain, threads=0, loader="workers")
    gpu = msgspec.structs.replace(worked, pin_memory=True, non_blocking=True, item_every_step=False, set_to_none=True,
                                  fused=True)  # fmt: skip
    amp = msgspec.structs.replace(gpu, precision=amp_precision(plan), channels_last=True)
    groups = {CPU: group.run({"CPU, 1 thread": plain, "CPU, all threads, loader workers": worked}, "cpu")}
    groups[GPU] = group.run({"GPU, fp32": gpu}, "cuda")
    sizes = {f"GPU, AMP, batch {b}": msgspec.structs.replace(amp, batch_size=b) for b in arguments.batch_sizes}
    groups[SWEEP] = group.run(sizes, "cuda", learn=False)
    best = sweet_spot(groups[SWEEP])
    at_best = msgspec.structs.replace(amp, batch_size=best.switches.batch_size if best else size)
    groups[GPU] += group.run({"GPU, AMP, best batch": at_best}, "cuda")
    groups[MATRIX] = group.run(matrix(worked if not on_gpu else gpu, amp_precision(plan)), plan.device)
    return groups


def matrix(vanilla: Switches, precision: str) -> dict[str, Switches]:
    """Plain, compiled, AMP, and both."""
    changes = {"vanilla": {}, "compile": {"compile": "default"}, "AMP": {"precision": precision},
               "compile + AMP": {"compile": "default", "precision": precision}}  # fmt: skip
    return {title: msgspec.structs.replace(vanilla, **change) for title, change in changes.items()}


def amp_precision(plan: Plan) -> str:
    """bf16, or fp16 on a GPU that does not compute bf16 in hardware."""
    import torch

    old = plan.device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    return "fp16" if old else "bf16"


class Group:
    """Measures rows that take turns; all of them learn from the same number of images."""

    def __init__(self, plan: Plan, batches: list[int], notify: Notify) -> None:
        self._plan, self._batches, self._notify = plan, batches, notify
        self._images = 0

    def run(self, rows: dict[str, Switches], device: str, *, learn: bool = True) -> tuple[Result, ...]:
        from trainers.measure.trial import Trial, together

        trials = [
            Trial(title.lower().replace(",", "").replace(" ", "-"), title, switches, self._plan, device=device)
            for title, switches in rows.items()
        ]
        if device == "cuda" and self._plan.device != "cuda":
            return tuple(msgspec.structs.replace(trial.result, error=NO_GPU) for trial in trials)
        together(trials, self._plan.rounds, self._notify, images=self._settle if learn else None)
        return tuple(trial.result for trial in trials)

    def _settle(self, results: list[Result]) -> int:
        """How many images to learn from: decided once, by the first row that was timed."""
        paces = [result.pace.value for result in results if result.pace]
        self._images = self._images or self._plan.images_for(paces[0], self._batches)
        return self._images


def show(record: Experiments, stem: Path, *, stderr: bool) -> None:
    """The table of all rows, the two by two, and where the files are."""
    from trainers.measure import tables

    everything = [result for group in record.groups.values() for result in group]
    learned = next((result.learned for result in everything if result.learned), None)
    test = f"; loss and top-1 on {learned.test_images} test images after {learned.images}" if learned else ""
    title = f"{record.model} on {record.data.name}, {record.rounds} rounds{test}"
    cli.table(title, tables.EXPERIMENTS, tables.experiment_rows(record), stderr=stderr)
    by_title = {result.title: result for result in record.groups[MATRIX]}
    cells = [
        [name, *(two_by_two(record, by_title[title]) for title in titles)]
        for name, titles in (("eager", ("vanilla", "AMP")), ("compiled", ("compile", "compile + AMP")))
    ]
    cli.table("epoch seconds / top-1", ("", "fp32>", "AMP>"), cells, stderr=stderr)
    cli.console(stderr=stderr).print(f"{stem}.json, .csv", markup=False)


def two_by_two(record: Experiments, result: Result) -> str:
    """One cell: epoch time and accuracy, or a dash."""
    from trainers.measure.tables import UNKNOWN, number

    if not result.valid or result.learned is None:
        return UNKNOWN
    return f"{number(record.epoch_s(result))} s / {result.learned.top1:.1f}%"


if __name__ == "__main__":
    cli.run(main)

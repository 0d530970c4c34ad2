"""What the exact training rewrites are worth: a training step with and without each, in turns, in one process.

    python benchmarks/rewrites.py [--rounds 15] [--model resnet18] [--batch-size 128] [--size 64]
    python benchmarks/rewrites.py --pixels     where a convolution as a matrix stops to pay: by the pixels of its map

Printed are medians and the median of the round-by-round ratios to the plain module, bf16 and channels last.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn

from trainers import models, rewrites
from trainers.allocator import keep_freed_memory
from trainers.learner import Learner
from trainers.spec import Recipe

CASES = ((512, 512, 3, 1, 1), (512, 512, 3, 1, 2), (256, 256, 3, 1, 2), (128, 128, 3, 1, 4), (128, 512, 7, 128, 4),
         (96, 384, 7, 96, 8), (64, 256, 7, 64, 16))  # fmt: skip


def learner(name: str, size: int | None, batch: int, chosen: str) -> tuple[Learner, torch.Tensor, torch.Tensor]:
    """A model ready to take steps, and a batch for it."""
    spec = models.get(name)
    options = dict(spec.options) | ({"size": size} if size and "size" in spec.options else {})
    shape = spec.shape(options)
    torch.manual_seed(0)
    module = spec.build(num_classes=spec.num_classes, input_shape=shape, **options)
    recipe = Recipe(batch_size=batch, precision="bf16", channels_last=True, rewrites=chosen)
    images, labels = torch.randn(batch, *shape), torch.randint(spec.num_classes, (batch,))
    return Learner(module, recipe, torch.device("cpu"), shape), images, labels


def seconds(work: object) -> float:
    began = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - began


def compare(contenders: dict[str, object], rounds: int, title: str) -> None:
    """Let them take turns; the first is what the others are compared with."""
    taken = [{name: seconds(work) for name, work in contenders.items()} for _ in range(rounds + 2)][2:]
    first = next(iter(contenders))
    print(f"{title:44}{'median':>12}{'times faster':>15}")
    for name in contenders:
        ratio = statistics.median(row[first] / row[name] for row in taken)
        print(f"  {name:42}{1e3 * statistics.median(row[name] for row in taken):9.2f} ms{ratio:15.2f}")


def steps(name: str, size: int | None, batch: int, rounds: int) -> None:
    contenders = {}
    for chosen in ("none", *rewrites.REWRITES, "all"):
        made, images, labels = learner(name, size, batch, chosen)
        contenders[chosen] = lambda made=made, images=images, labels=labels: made.step(images, labels, 1e-4)
    compare(contenders, rounds, f"{name}, batch {batch}" + (f", {size} px" if size else ""))


def pixels(batch: int, rounds: int) -> None:
    for inputs, outputs, kernel, groups, side in CASES:
        conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
        rows = rewrites.live_taps(side, kernel, 1, kernel // 2)
        forms = {
            "plain": conv,
            "live-taps": rewrites.LiveConv2d(conv, rows, rows),
            "small-maps": rewrites.DenseConv2d(conv, rows, rows, side, side),
        }
        x = torch.randn(batch, inputs, side, side).bfloat16().contiguous(memory_format=torch.channels_last)
        x.requires_grad_()

        def work(form: nn.Module, x: torch.Tensor = x) -> None:
            with torch.autocast("cpu", torch.bfloat16):
                form(x).sum().backward()

        contenders = {name: lambda form=form, work=work: work(form) for name, form in forms.items()}
        compare(contenders, rounds, f"{inputs} to {outputs}, {kernel}x{kernel}, {groups} groups, {side}x{side} map")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--model", choices=models.names())
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--size", type=int)
    parser.add_argument("--pixels", action="store_true")
    given = parser.parse_args()
    keep_freed_memory()
    if given.pixels:
        pixels(given.batch_size or 128, given.rounds)
    elif given.model:
        steps(given.model, given.size, given.batch_size or 128, given.rounds)
    else:
        steps("resnet18", None, given.batch_size or 128, given.rounds)
        steps("convnext", given.size or 64, given.batch_size or 32, given.rounds)


if __name__ == "__main__":
    main()

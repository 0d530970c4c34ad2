"""What training reaches on this machine, by the product's own commands.

    python benchmarks/train.py ladder resnet18 --data cifar10        the best rung against the plainest script, paired
    python benchmarks/train.py accuracy resnet18 --data cifar10      accuracy against seconds of training
    python benchmarks/train.py start resnet18                        process start to the end of the first step

What follows the model goes to the command as it is. Results go under a temporary folder; `--keep DIR` keeps them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PYTHON = [sys.executable, "-m"]


def ladder(model: str, flags: list[str], folder: Path) -> None:
    command = [*PYTHON, "trainers.ladder", model, *flags, "--artifacts", str(folder), "--json"]
    done = subprocess.run([*command, "--logs", str(folder / "logs")], stdout=subprocess.PIPE, text=True, check=True)
    print(f"{model}: the best rung is {json.loads(done.stdout)['best_ratio']['value']:.2f} times as fast as the first")


def accuracy(model: str, flags: list[str], folder: Path) -> None:
    command = [*PYTHON, "trainers", model, *flags, "--artifacts", str(folder), "--json"]
    document = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    print(f"{model}: seconds of training and top-1 on {document['metrics']['images']} test images")
    for point in document["curve"]:
        print(f"  {point['seconds']:8.1f} s  step {point['step']:6}  {point['test_top1']:6.2f}%")


def start(model: str, flags: list[str], folder: Path, runs: int = 5) -> None:
    command = [*PYTHON, "trainers", model, *flags, "--steps", "2", "--set", "save_every=1", "--artifacts", str(folder)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)  # packs the split, fills the disk's cache
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if line.startswith("step 1/"):
                    taken.append(time.perf_counter() - began)
    print(f"{model}: {statistics.median(taken):.2f} s from process start to the first step's saved state "
          f"(from {min(taken):.2f} to {max(taken):.2f}, {len(taken)} runs)")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("ladder", "accuracy", "start"))
    parser.add_argument("model")
    parser.add_argument("--keep", type=Path, metavar="DIR")
    given, flags = parser.parse_known_args()
    work = {"ladder": ladder, "accuracy": accuracy, "start": start}[given.what]
    with tempfile.TemporaryDirectory() as scratch:
        work(given.model, flags, given.keep or Path(scratch))


if __name__ == "__main__":
    main()

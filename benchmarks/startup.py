"""How long commands take to answer `--help`, beside a bare Python start in the same run.

    python benchmarks/startup.py [--runs 10]

The bare start and the commands take turns; printed are medians and each command's paired ratio to the bare start.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = (
    "trainers",
    "trainers.cache",
    "trainers.ladder",
    "trainers.sweep",
    "trainers.experiments",
    "export",
    "runtime",
    "runtime bench",
    "runtime report",
    "runtime backends",
    "runtime view",
)


def seconds(arguments: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    runs = parser.parse_args().runs
    lines = {"bare python": ["-c", "pass"]} | {f"{c} --help": ["-m", *c.split(), "--help"] for c in COMMANDS}
    rounds = [{name: seconds(line) for name, line in lines.items()} for _ in range(runs + 1)][1:]  # the first warms up
    print(f"{'command':28}{'median':>9}{'ratio to bare python':>24}")
    for name in lines:
        times = [taken[name] for taken in rounds]
        ratio = statistics.median(taken[name] / taken["bare python"] for taken in rounds)
        print(f"{name:28}{statistics.median(times):8.3f}s{ratio:24.2f}")


if __name__ == "__main__":
    main()

"""Does `tune` decide alike every time? The same search again and again.

    python benchmarks/tuning.py convnext --runs 5 --budget 6m

Every run searches from the start: nothing that an earlier one timed or judged is used, only the files that it made,
which are the same bytes. A run decides alike where it names the first run's winner, or where one of the two runs could
not tell the two from each other. Printed, and written to --results with each run's own sentence.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)

import msgspec  # noqa: E402 (run as a script)

from runtime.results import engine_name  # noqa: E402
from runtime.tuning import best, tables  # noqa: E402
from runtime.tuning.best import Best  # noqa: E402
from trainers import cli, manifest  # noqa: E402


def search(model: str, artifacts: Path, flags: list[str]) -> tuple[Best, float]:
    """One run of the command: what it recommends, and the seconds that it took."""
    command = [sys.executable, "-m", "runtime", "tune", model, "--artifacts", str(artifacts), *flags]
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return Best.load(best.path(artifacts / model)), time.perf_counter() - began


def alike(one: Best, first: Best) -> bool:
    """Whether two runs name the same winner, or one that the other could not be told from."""
    return _winner(one) == _winner(first) or _winner(first) in one.ties or _winner(one) in first.ties


def _winner(found: Best) -> str:
    return f"{found.artifact} in {engine_name(found.backend, found.options)}"


def main() -> int:
    parser = cli.Parser(prog="python benchmarks/tuning.py", description=__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"), metavar="DIR")
    parser.add_argument("--runs", type=cli.positive, default=5, metavar="N")
    parser.add_argument("--budget", default="15m", help="of one run, as tune's (default: 15m)")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "tune-repeated.json")
    arguments = parser.parse_args()
    models: dict[str, Any] = {}
    for model in arguments.models:
        runs = []
        for number in range(arguments.runs):
            found, seconds = search(model, arguments.artifacts, ["--budget", arguments.budget])
            print(f"{model}, run {number + 1}: {seconds:.0f} s: {tables.recommendation(found)}", flush=True)
            runs.append((found, seconds))
        first = runs[0][0]
        same = sum(alike(found, first) for found, _ in runs)
        print(f"{model}: {same} of {len(runs)} runs name {_winner(first)}, or what they could not tell from it")
        models[model] = {
            "alike": same,
            "runs": [{"winner": _winner(found), "ties": found.ties, "seconds": seconds,
                      "ms": [1e3 * value for value in (found.latency_s.value, found.latency_s.low,
                                                       found.latency_s.high)],
                      "faster": found.faster and [found.faster.value, found.faster.low, found.faster.high],
                      "drop": found.accuracy.drop, "recommendation": tables.recommendation(found)}
                     for found, seconds in runs],
        }  # fmt: skip
    document = {"environment": msgspec.to_builtins(manifest.environment()), "budget": arguments.budget,
                "models": models}  # fmt: skip
    manifest.write_atomic(arguments.results, (json.dumps(document, indent=1) + "\n").encode())
    return cli.OK if all(found["alike"] == arguments.runs for found in models.values()) else cli.FAILED


if __name__ == "__main__":
    cli.run(main)

"""From a new process to the first answer of the recommended form, and the memory that it takes; no PyTorch in it.

    python -m runtime tune convnext resnet18 simplecnn       (one after the other) leaves what is loaded
    python benchmarks/cold_start.py convnext resnet18 simplecnn [--runs 10]

Beside it, in turns, a process that starts Python and imports the engine and numpy, and nothing else: the least that
any program with this engine takes. Printed and written to --results are medians, and the largest peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)

import msgspec  # noqa: E402 (run as a script)

from runtime.tuning import best  # noqa: E402
from trainers import cli, manifest  # noqa: E402

ANSWER = """
import resource, sys
import numpy as np
from runtime import best
model = best({name!r}, artifacts={artifacts!r}, max_drop=100)
model(np.zeros((1, *{shape}), np.float32))
print("torch" in sys.modules, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
IMPORTS = {"native": "ctypes"}  # an engine without a module of its name
BARE = """
import resource
import numpy, {engine}
print(False, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def run(code: str) -> tuple[float, int]:
    """Seconds of the whole process, and its peak memory in bytes."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - began
    torch, peak = done.stdout.split()
    assert torch == "False", "the engine's process has imported torch"
    return seconds, 1024 * int(peak)


def measure(model: str, artifacts: Path, runs: int) -> dict[str, Any]:
    """The medians of one model's recommended form."""
    found = best.Best.load(best.path(artifacts / model))
    record = json.loads((artifacts / model / found.file.path).with_suffix(".json").read_text())
    shape = tuple(record["inputs"][0]["shape"][1:])
    codes = (
        ANSWER.format(name=model, artifacts=str(artifacts), shape=shape),
        BARE.format(engine=IMPORTS.get(found.backend, found.backend)),
    )
    taken: list[list[tuple[float, int]]] = [[], []]
    for _ in range(runs + 1):
        for place, code in enumerate(codes):
            taken[place].append(run(code))
    (answers, bare) = (part[1:] for part in taken)  # the first pair read the files from disk
    return {
        "artifact": found.artifact, "backend": found.backend, "runs": runs,
        "first_answer_s": statistics.median(seconds for seconds, _ in answers),
        "slowest_s": max(seconds for seconds, _ in answers),
        "engine_alone_s": statistics.median(seconds for seconds, _ in bare),
        "peak_bytes": max(peak for _, peak in answers), "engine_alone_bytes": max(peak for _, peak in bare),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"), metavar="DIR")
    parser.add_argument("--runs", type=cli.positive, default=10)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "cold-start.json")
    arguments = parser.parse_args()
    models = {model: measure(model, arguments.artifacts, arguments.runs) for model in arguments.models}
    document = {"environment": msgspec.to_builtins(manifest.environment()), "models": models}
    manifest.write_atomic(arguments.results, (json.dumps(document, indent=1) + "\n").encode())
    rows = [
        (model, one["artifact"], one["backend"], f"{one['first_answer_s']:.2f}", f"{one['engine_alone_s']:.2f}",
         cli.megabytes(one["peak_bytes"]), cli.megabytes(one["engine_alone_bytes"]))
        for model, one in models.items()
    ]  # fmt: skip
    cli.table("from a new process to the first answer", ("model", "form", "engine", ">s", ">engine alone, s", ">peak",
              ">engine alone"), rows)  # fmt: skip
    return cli.OK


if __name__ == "__main__":
    cli.run(main)

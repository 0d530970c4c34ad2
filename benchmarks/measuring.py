"""Can the numbers of `runtime bench` be trusted? The measuring itself, put to the test on this machine.

    python benchmarks/measuring.py artifacts/resnet18/resnet18-dynamo-exact-fp32.onnx [--only equal,planted]

- floor: what the timing loop adds to a step, by the null backend;
- equal: an artifact beside itself in runs of `bench`: how often are the two called different?
- planted: beside itself with 5% more work in every step: how often is it found?
- order: a dozen equal workers, loaded one after the other: are the first ones slower than the last?
- neighbour: alone, and beside stopped workers that hold their threads: does the neighbour show?
- bare: against a plain loop over `session.run` in turns; and OpenVINO's own benchmark_app on the same file;
- worker: seconds until a worker has loaded, and its peak memory against a minimal script's.

Each experiment uses bench's defaults unless --seconds or --comparisons say otherwise. The first two are runs of bench
but for their rows, and count its verdicts; up to ten comparisons share a run, and so its baseline and the twin.
Results go to benchmarks/results/measuring.json and, as a page, to docs/measuring-results.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)  # for the workers

from runtime import stats, targets  # noqa: E402 (run as a script)
from runtime.bench import Bench  # noqa: E402
from runtime.contender import Contender  # noqa: E402
from runtime.machine import causes, observe  # noqa: E402
from runtime.plan import SECONDS, Plan  # noqa: E402
from runtime.results import Measurement  # noqa: E402
from runtime.verdict import DROP, KEEP, judge  # noqa: E402
from trainers import cli, manifest  # noqa: E402

PLANTED = 0.05
PROCESSES = 9  # of each tool: where its memory happens to lie moves a process by some percent
DOZEN = 12
ROUNDS = 64  # of what is no run of bench
TOGETHER = 10  # comparisons in one run
SERIES = 3
UNITS = {"ms": 1e-3, "us": 1e-6}  # as benchmark_app prints them
MINIMAL = """
import sys
{body}
print([line for line in open("/proc/self/status") if line.startswith("VmHWM")][0].split()[1])
"""
ORT = """
import numpy as np, onnxruntime as ort
o = ort.SessionOptions(); o.intra_op_num_threads = {threads}; o.inter_op_num_threads = 1
s = ort.InferenceSession(sys.argv[1], o, providers=["CPUExecutionProvider"])
x = np.zeros((1, *s.get_inputs()[0].shape[1:]), np.float32)
for _ in range(50): s.run(None, {{s.get_inputs()[0].name: x}})
"""
OPENVINO = """
import numpy as np, openvino as ov
m = ov.Core().read_model(sys.argv[1]); shape = m.input(0).get_partial_shape(); shape[0] = 1; m.reshape(shape)
settings = {{"INFERENCE_NUM_THREADS": {threads}, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}}
c = ov.compile_model(m, "CPU", settings)
r = c.create_infer_request(); x = np.zeros(list(shape.to_shape()), np.float32)
for _ in range(50): r.infer([x])
"""


class Slowed(Contender):
    module = "benchmarks.slowed_worker"


class Bare(Contender):
    module = "benchmarks.bare_worker"


Keep = Callable[[str, dict[str, Any]], None]


def duel(pair: Sequence[Contender]) -> stats.Estimate:
    """How many times faster the second is than the first, by interleaved rounds."""
    order, shuffle = list(pair), random.Random(0).shuffle  # noqa: S311 (no secret)
    for _ in range(ROUNDS):
        shuffle(order)
        for contender in order:
            contender.turn()
    one, other = (only(contender).rounds_s for contender in pair)
    return stats.speedup(one, other)


def only(contender: Contender) -> Measurement:
    (row,) = contender.rows()
    assert row.error is None, row.error
    return row


@contextlib.contextmanager
def loaded(*contenders: Contender, batch: int = 1) -> Iterator[None]:
    try:
        for contender in contenders:
            contender.load(batch, 0)
            contender.settle(ROUNDS)
            only(contender)
        yield
    finally:
        for contender in contenders:
            contender.close()


class Experiments:
    """Each method is an experiment; its result is a mapping for JSON.

    What takes long calls `keep` with its name and what it has so far; `known` are results to go on from.
    """

    def __init__(self, arguments: argparse.Namespace, keep: Keep, known: dict[str, Any]) -> None:
        self.keep, self.known = keep, known
        (self.target,), _ = targets.resolve([str(arguments.artifact)], Path("artifacts"), None)
        self.count, self.threads = arguments.comparisons, manifest.usable_threads()
        self.plan = Plan(backends=("onnxruntime",), threads=(self.threads,), seconds=arguments.seconds)

    def contender(self, kind: type[Contender] = Contender, backend: str = "onnxruntime", **options: str) -> Contender:
        return kind(self.target, backend, options, self.plan, threads=self.threads)

    def floor(self) -> dict[str, Any]:
        contender = self.contender(backend="null")
        with loaded(contender):
            contender.turn()
            return {"microseconds": 1e6 * only(contender).median.value}

    def equal(self) -> dict[str, Any]:
        found = {"share": 0.0, "series": list(self.known.get("equal", {}).get("series", ()))}
        while len(found["series"]) < SERIES:
            found["series"].append(self._judged(Contender, 1, self.count))
            self.keep("equal", found)
        return found

    def planted(self) -> dict[str, Any]:
        os.environ["SLOWED_BY"] = str(PLANTED)
        batch, milliseconds = self._of_five_milliseconds()
        return {"share": PLANTED, "batch": batch, "milliseconds": milliseconds,
                "series": [self._judged(Slowed, batch, max(20, self.count // 5))]}  # fmt: skip

    def _of_five_milliseconds(self) -> tuple[int, float]:
        """The batch that takes about so long, and how long it should."""
        contender = self.contender()
        with loaded(contender):
            contender.turn()
            single = 1e3 * only(contender).median.value
        batch = max(1, round(5.0 / single))
        return batch, batch * single

    def _judged(self, kind: type[Contender], batch: int, count: int) -> dict[str, Any]:
        """What runs of bench said of so many rows that a contender of that kind measures."""
        found: list[tuple[str, float, float]] = []
        plan = msgspec.structs.replace(self.plan, batches=(batch,))
        while len(found) < count:
            others = [self.contender(kind) for _ in range(min(TOGETHER, count - len(found)))]
            rivals = [self.contender(), *others]
            report = Bench([self.target], plan, manifest.environment(), rivals=lambda _, given=rivals: given).run()
            for row in report.measurements[2:]:  # after the baseline and its twin
                verdict, ratio = judge(report, row), report.speedup(row)
                assert verdict is not None and ratio is not None, row.error
                found.append((verdict.word, ratio.value, report.floor(row)))
            cli.console(stderr=True).print(f"{kind.__name__}: {len(found)} of {count}", end="\r")
        words = [word for word, _, _ in found]
        return {"comparisons": count, "faster": words.count(KEEP), "slower": words.count(DROP),
                "ratios": [round(ratio, 5) for _, ratio, _ in found],
                "floors": [round(floor, 5) for _, _, floor in found[::TOGETHER]]}  # fmt: skip

    def order(self) -> dict[str, Any]:
        """By what the first third of the workers loaded is slower than the last third; three times, all loaded anew."""
        found = []
        for _ in range(SERIES):
            workers = [self.contender() for _ in range(DOZEN)]
            with loaded(*workers):
                for _ in range(ROUNDS):
                    for contender in random.sample(workers, DOZEN):
                        contender.turn()
            medians = [only(contender).median.value for contender in workers]
            third = DOZEN // 3
            found.append(statistics.mean(medians[:third]) / statistics.mean(medians[-third:]) - 1)
        return {"workers": DOZEN, "slower": found}

    def neighbour(self) -> dict[str, Any]:
        """The same worker with and without four stopped workers beside it, in alternation."""
        one, others = self.contender(), [self.contender() for _ in range(4)]
        alone: list[tuple[float, ...]] = []
        beside: list[tuple[float, ...]] = []
        with loaded(one):
            for turn in range(ROUNDS):  # of which every second one loads the others
                crowd = others if turn % 2 else []
                with loaded(*crowd):
                    for contender in crowd:
                        contender.turn()  # its threads have just been awake, and spinning
                    one.turn()
                    (beside if turn % 2 else alone).append(only(one).rounds_s[-1])
        ratio = stats.speedup(alone, beside)
        return {"ratio": ratio.value, "low": ratio.low, "high": ratio.high}

    def bare(self) -> dict[str, Any]:
        """A plain loop against our session that calls `session.run` too, and against that with bound buffers.

        Each pair of processes has a ratio of its own; of them the median, the smallest and the largest.
        """
        found = {}
        for name, options in (("session.run", {"binding": "off"}), ("session.run, ours with bound buffers", {})):
            ratios = []
            for _ in range(PROCESSES):
                pair = (self.contender(Bare), self.contender(**options))
                with loaded(*pair):
                    ratios.append(duel(pair).value)
            found[name] = {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
        return {**found, **self._benchmark_app()}

    def _benchmark_app(self) -> dict[str, Any]:
        """OpenVINO's tool and ours in turns, ABAB, each time in a new process: its median latency over ours.

        The tool prints what the engine says of itself. Ours is what a caller in Python waits for, some 25 to 40 us
        more; so the batch is one of about 5 ms.
        """
        tool = shutil.which("benchmark_app", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        if tool is None:
            return {}
        ours = self.contender(backend="openvino")
        batch, _ = self._of_five_milliseconds()
        shape = ",".join(map(str, (batch, *self.target.input_shape[1:])))
        command = [
            tool, "-m", str(self.target.found.path), "-d", "CPU", "-hint", "none", "-nstreams", "1", "-api", "sync",
            "-nthreads", str(self.threads), "-infer_precision", "f32", "-shape", f"[{shape}]", "-t", "3",
        ]  # fmt: skip
        ratios = []
        for _ in range(PROCESSES):
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found = re.search(r"Median:\s*([\d.]+) (ms|us)", said)
            assert found is not None, said
            with loaded(ours, batch=batch):
                for _ in range(ROUNDS):
                    ours.turn()
                ratios.append(float(found[1]) * UNITS[found[2]] / only(ours).median.value)
        return {"benchmark_app": {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}}

    def worker(self) -> dict[str, Any]:
        found = {}
        for backend, body in (("onnxruntime", ORT), ("openvino", OPENVINO)):
            ours = self.contender(backend=backend)
            began = time.monotonic()
            with loaded(ours):
                seconds = time.monotonic() - began
                ours.turn()
                peak = only(ours).peak_bytes or 0
            script = MINIMAL.format(body=body.format(threads=self.threads))
            done = subprocess.run([sys.executable, "-c", script, str(self.target.found.path)],
                                  capture_output=True, text=True, check=True)  # fmt: skip
            minimal = 1024 * int(done.stdout.split()[-1])
            found[backend] = {"seconds": seconds, "peak_bytes": peak, "minimal_bytes": minimal}
        return found


def page(document: dict[str, Any]) -> str:
    """The results in words."""
    e, found = document["environment"], document["results"]
    lines = [
        "# The measuring, measured", "",
        f"Made by `python benchmarks/measuring.py` with {document['artifact']} on {e['cpu']}, {e['threads']} threads.",
        *(f"DISTURBED: {name}: {cause}." for name, why in document["disturbed"].items() for cause in why), "",
        "| experiment | result |", "| --- | --- |",
    ]  # fmt: skip
    rows: dict[str, Callable[[dict[str, Any]], str]] = {
        "floor": lambda r: f"{r['microseconds']:.2f} us a step in the null backend",
        "equal": lambda r: "called different: " + "; ".join(map(_called, r["series"])),
        "planted": lambda r: f"{r['series'][0]['slower']} of {r['series'][0]['comparisons']} found: {r['share']:.0%} "
                             f"more work on {r['milliseconds']:.1f} ms",
        "order": lambda r: f"of {r['workers']} equal workers the third loaded first is slower than the last third by "
                           + ", ".join(f"{share:+.1%}" for share in r["slower"]),
        "neighbour": lambda r: f"beside four stopped workers {_times(r)} as fast",
        "bare": lambda r: "; ".join(f"{name} takes {_times(one)} our time" for name, one in r.items()),
        "worker": lambda r: "; ".join(
            f"{name}: ready after {one['seconds']:.2f} s, {one['peak_bytes'] / one['minimal_bytes']:.2f} times the "
            "memory of a minimal script" for name, one in r.items()),
    }  # fmt: skip
    return "\n".join([*lines, *(f"| {name} | {rows[name](found[name])} |" for name in rows if name in found), ""])


def _called(duels: dict[str, Any]) -> str:
    return f"{duels['faster'] + duels['slower']} of {duels['comparisons']}"


def _times(ratio: dict[str, float]) -> str:
    return f"{ratio['ratio']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}] times"


def main() -> int:
    names = ("floor", "equal", "planted", "order", "neighbour", "bare", "worker")
    parser = cli.Parser(prog="python benchmarks/measuring.py", description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--only", default=",".join(names), help=f"of {', '.join(names)}")
    parser.add_argument("--comparisons", type=cli.positive, default=100)
    parser.add_argument("--resume", action="store_true", help="go on with the series of `equal` that are there")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="timed seconds a row")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "measuring.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "measuring-results.md")
    arguments = parser.parse_args()
    document = _known(arguments)

    def keep(name: str, result: dict[str, Any]) -> None:
        document["results"][name] = result
        since = document["disturbed"].get(name, []) if arguments.resume else []
        document["disturbed"][name] = [*since, *(cause for cause in causes((before, observe())) if cause not in since)]
        manifest.write_atomic(arguments.results, (json.dumps(document, indent=1) + "\n").encode())
        manifest.write_atomic(arguments.page, page(document).encode())

    experiments = Experiments(arguments, keep, dict(document["results"]) if arguments.resume else {})
    for name in arguments.only.split(","):
        before = observe()
        keep(cli.choose(name, names, "experiment"), getattr(experiments, name)())
    print(page(document))
    return cli.OK


def _known(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was found before on this machine with this artifact, by experiment: each may be of another run."""
    here = manifest.environment()
    fresh = {
        "environment": msgspec.to_builtins(here),
        "artifact": arguments.artifact.stem,
        "disturbed": {},
        "results": {},
    }
    if not arguments.results.is_file():
        return fresh
    old = json.loads(arguments.results.read_text())
    then = msgspec.convert(old["environment"], manifest.Environment)
    same = (then.cpu, then.cores) == (here.cpu, here.cores) and old["artifact"] == fresh["artifact"]
    return {**fresh, "disturbed": old["disturbed"], "results": old["results"]} if same else fresh


if __name__ == "__main__":
    cli.run(main)

"""Side by side: our fastest form against what other tools make of the same file, with the same calibration images.

    python -m runtime tune convnext                          leaves the form that is ours
    python benchmarks/peers.py convnext resnet18 simplecnn

Each tool of benchmarks/peers.toml is installed into an environment of its own, makes its file by its own defaults, and
its environment is deleted. All files are then timed in one interleaved run of bench, by the same loop, beside PyTorch
eager, compiled and ahead of time, and the fp32 file in ONNX Runtime and OpenVINO; accuracy is of the same test images.
A tool that cannot be installed, fails or takes longer than --limit is a row with its own last words.

Results go to benchmarks/results/peers-cpu.json and, as a page, to docs/peers.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import tomllib

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)  # for the workers

from export import calibration, options, parity, reference  # noqa: E402 (run as a script)
from export.artifact import Found  # noqa: E402
from export.job import Job  # noqa: E402
from runtime import backends, check, stats  # noqa: E402
from runtime.bench import Bench  # noqa: E402
from runtime.contender import Contender  # noqa: E402
from runtime.plan import PROCESSES, SECONDS, Plan  # noqa: E402
from runtime.results import Measurement, Subject, engine_name  # noqa: E402
from runtime.targets import Target, resolve  # noqa: E402
from runtime.tuning import best  # noqa: E402
from trainers import cli, manifest  # noqa: E402
from trainers.manifest import UserError  # noqa: E402

TOOLS = tomllib.loads((ROOT / "benchmarks" / "peers.toml").read_text())
SCRIPTS = ROOT / "benchmarks" / "peers_tools"
OURS = "ours"
OWN = {  # of PyTorch and the engines, without any tool: the form, and the engines that run it as they come
    "torch": ("eager", "compiled", "aoti"),
    "fp32": ("onnxruntime", "openvino", "openvino precision=bf16"),
}
UNITS = {"ms": 1e-3, "us": 1e-6}  # as benchmark_app prints them


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row: a file in an engine; `problem` is why there is none."""

    tool: str
    engine: str = ""
    target: Target | None = None
    seconds: float | None = None  # that the tool took
    problem: str | None = None

    @property
    def backend(self) -> str:
        return self.engine.split()[0]

    @property
    def options(self) -> dict[str, str]:
        return dict(pair.split("=") for pair in self.engine.split()[1:])


class Side:
    """One model: its file, its images, and everybody's forms of it."""

    def __init__(self, model: str, job: Job, artifacts: Path, work: Path, own: Sequence[str]) -> None:
        self.model, self.job, self.work = model, job, work / model
        self.work.mkdir()
        self.best = best.Best.load(best.path(job.folder))
        found, _ = resolve([model], artifacts, None)
        self._targets = {target.subject.name: target for target in found}
        self.fp32 = self._plain("onnx")
        self.images = self.work / "images.npy"
        np.save(self.images, np.concatenate(list(calibration.stream(job.calibration[0]))))
        self.entries = [self._ours(), *(entry for entry in self._own() if entry.engine in own)]

    def _plain(self, kind: str) -> Target:
        for target in self._targets.values():
            subject = target.subject
            if target.found.kind == kind and subject.is_exact_fp32 and subject.variant and not subject.variant.rewrites:
                return target
        raise UserError(f"{self.model}: no fp32 file of kind {kind}; make it with: python -m export {self.model}")

    def _ours(self) -> Entry:
        engine = engine_name(self.best.backend, self.best.options)
        return Entry(tool=OURS, engine=engine, target=self._targets[self.best.artifact])

    def _own(self) -> Iterator[Entry]:
        for engine in OWN["torch"]:
            yield Entry(tool="PyTorch", engine=engine, target=self._plain("torch"))
        copy = self.work / "fp32.onnx"  # without its record, which would hold it to its own arithmetic
        shutil.copyfile(self.fp32.found.path, copy)
        plain = _foreign(copy, f"{self.model} as it is", self.fp32.input_shape)
        for engine in OWN["fp32"]:
            yield Entry(tool="no tool, fp32", engine=engine, target=plain)

    def run_tool(self, name: str, python: Path, limit_s: float) -> None:
        """Let a tool make its file; add its rows."""
        folder = self.work / name
        folder.mkdir()
        command = [python, SCRIPTS / TOOLS[name]["script"], self.fp32.found.path.resolve(), self.images, folder]
        began = time.monotonic()
        problem = _run(list(map(str, command)), limit_s, folder)
        spent = time.monotonic() - began
        made = next((path for path in (folder / "model.onnx", folder / "model.xml") if path.is_file()), None)
        if problem is not None or made is None:
            self.entries.append(Entry(tool=name, seconds=spent, problem=problem or "it left no file"))
            return
        target = _foreign(made, f"{self.model} by {name}", self.fp32.input_shape)
        self.entries += [
            Entry(tool=name, engine=engine, target=target, seconds=spent) for engine in TOOLS[name]["engines"]
        ]

    def measure(self, plan: Plan, verification: int) -> dict[str, Any]:
        """All rows in one interleaved run, their accuracy, and ours against the best of the others."""
        racing = [entry for entry in self.entries if entry.target is not None]
        contenders = [Contender(entry.target, entry.backend, entry.options, plan, threads=plan.threads[0])
                      for entry in racing if entry.target is not None]  # fmt: skip
        targets = list({id(entry.target): entry.target for entry in racing if entry.target is not None}.values())
        with cli.progress() as bars:
            task = bars.add_task("racing", total=None)
            report = Bench(targets, plan, manifest.environment(), rivals=lambda _: contenders).run(
                lambda what, done, total: bars.update(task, description=what, completed=done, total=total)
            )
        measured = [next(row for row in report.measurements if not row.cell.twin and not row.heat
                         and (row.cell.artifact, row.cell.backend, row.cell.options)
                         == (entry.target.subject.name, entry.backend, entry.options))
                    for entry in racing if entry.target is not None]  # fmt: skip
        ours = measured[0]
        rows = [self._row(entry, row, ours, verification) for entry, row in zip(racing, measured, strict=True)]
        rows += [{"tool": entry.tool, "problem": entry.problem, "tool_seconds": entry.seconds}
                 for entry in self.entries if entry.target is None]  # fmt: skip
        return {**_headline(rows), "disturbed": report.disturbances, "floor": report.floor(ours), "rows": rows}

    def _row(self, entry: Entry, row: Measurement, ours: Measurement, verification: int) -> dict[str, Any]:
        assert entry.target is not None
        shared = {"tool": entry.tool, "engine": entry.engine, "bytes": entry.target.subject.bytes,
                  "tool_seconds": entry.seconds}  # fmt: skip
        if not row.valid:
            return {**shared, "problem": row.error}
        ratio = stats.speedup(row.rounds_s, ours.rounds_s, ours.processes)  # ours is so many times as fast
        return {**shared, "ms": 1e3 * row.median.value, "interval": [1e3 * row.median.low, 1e3 * row.median.high],
                "ratio": ratio.value, "ratio_interval": [ratio.low, ratio.high],
                "own_benchmark_ms": self._own_benchmark(entry, row.cell.batch),
                **self._accuracy(entry, verification)}  # fmt: skip

    def _accuracy(self, entry: Entry, count: int) -> dict[str, Any]:
        """Points of top-1 lost on test images, in that engine."""
        if entry.tool == "PyTorch" or not self.job.labelled:
            return {"drop": 0.0 if self.job.labelled else None}
        assert entry.target is not None
        chosen = reference.choose_images(self.job.data.splits["test"], self.job.checkpoint.preprocess, count)
        expected = self.job.answers("exact", chosen).argmax(1)
        size = entry.target.input_shape[0] or chosen.batch
        session = backends.get(entry.backend).load(
            entry.target.found, device="cpu", threads=manifest.usable_threads(), batch=size, options=entry.options
        )
        parts = [check.answers(session, part, size)[:kept] for whole in reference.images(chosen, title=entry.tool)
                 for part, kept in parity.fitted(whole, size)]  # fmt: skip
        session.close()
        labels, top = chosen.labels, np.concatenate(parts).argmax(1)
        drop, interval = parity.paired_drop(expected == labels, top == labels)
        return {"drop": drop, "drop_interval": list(interval), "images": len(top)}

    def _own_benchmark(self, entry: Entry, batch: int) -> float | None:
        """What OpenVINO's benchmark_app says of the file, with its own defaults for latency."""
        tool = shutil.which("benchmark_app", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        if entry.engine != "openvino" or tool is None or entry.target is None:
            return None
        shape = ",".join(map(str, (batch, *entry.target.input_shape[1:])))
        command = [tool, "-m", str(entry.target.found.path), "-d", "CPU", "-hint", "latency", "-shape", f"[{shape}]",
                   "-t", "5"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = re.search(r"Median:\s*([\d.]+) (ms|us)", done.stdout)
        return None if said is None else 1e3 * float(said[1]) * UNITS[said[2]]


def _headline(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Ours against the best of the others that lose no more than half a point."""
    ours, *others = (row for row in rows if "ms" in row)
    able = [row for row in others if row["drop"] is None or row["drop"] <= 0.5]
    first = min(able, key=lambda row: row["ms"])
    return {"ours_ms": ours["ms"], "best_peer": f"{first['tool']} in {first['engine']}", "best_peer_ms": first["ms"],
            "ratio": first["ratio"], "interval": first["ratio_interval"]}  # fmt: skip


def _foreign(path: Path, name: str, shape: tuple[int | None, ...]) -> Target:
    """A tool's file; nobody vouches for it."""
    size = sum(file.stat().st_size for file in (path, path.with_suffix(".bin"), path.with_name(path.name + ".data"))
               if file.is_file())  # fmt: skip
    subject = Subject(name=name, model=name, path=str(path), bytes=size, sha256=manifest.sha256(path), variant=None,
                      passed=False, drop=None, drop_interval=None)  # fmt: skip
    return Target(Found(path=path, record=None), subject, shape)


def _run(command: list[str], limit_s: float, folder: Path) -> str | None:
    """Run a command in `folder`; why it failed, in its own last words, or None."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=limit_s, cwd=folder, env=clean
        )
    except subprocess.TimeoutExpired:
        return f"not done after {limit_s:.0f} s"
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return (lines[-1] if lines else f"exit status {done.returncode}")[:300]


@contextlib.contextmanager
def environment(name: str, work: Path, limit_s: float) -> Iterator[tuple[Path, str | None]]:
    """A tool's own Python, deleted afterwards; and why it could not be installed."""
    home = work / f"venv-{name}"
    try:
        problem = _run([sys.executable, "-m", "venv", str(home)], limit_s, work)
        python = home / "bin" / "python"
        wanted = [str(python), "-m", "pip", "install", "--quiet", *TOOLS[name]["packages"]]
        yield python, problem or _run(wanted, limit_s, work)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def page(document: dict[str, Any]) -> str:
    """The results as a table a model."""
    e = document["environment"]
    lines = [
        "# Side by side with other tools", "",
        f"Made by `python benchmarks/peers.py` on {e['time'][:10]}: {e['cpu']}, {document['threads']} threads, batch "
        f"{document['batch']}. Each tool had the same fp32 file and the same {document['calibration']} calibration "
        "images, and its own defaults; all rows of a table were timed in one interleaved run. The ratio says how many "
        "times as fast ours is, with its 95% interval.",
    ]  # fmt: skip
    for model, found in document["models"].items():
        low, high = found["interval"]
        disturbed = f" DISTURBED: {'; '.join(found['disturbed'])}." if found["disturbed"] else ""
        lines += ["", f"## {model}", "",
                  f"Ours {found['ours_ms']:.3g} ms, best peer {found['best_peer']} {found['best_peer_ms']:.3g} ms: "
                  f"**{found['ratio']:.2f} times as fast** [{low:.2f}, {high:.2f}].{disturbed}", "",
                  cli.markdown(("tool", "engine", ">ms", ">ours is faster", ">drop, points", ">MB", ">the tool took, s",
                                ">its own benchmark, ms", "problem"), map(_cells, found["rows"]))]  # fmt: skip
    return "\n".join([*lines, ""])


def _cells(row: dict[str, Any]) -> list[str]:
    def number(name: str, form: str, factor: float = 1.0) -> str:
        value = row.get(name)
        return "-" if value is None else f"{factor * value:{form}}"

    low, high = row.get("ratio_interval", (None, None))
    ratio = "-" if low is None else f"{row['ratio']:.2f} [{low:.2f}, {high:.2f}]"
    return [row["tool"], row.get("engine", ""), number("ms", ".3g"), ratio, number("drop", "+.2f"),
            number("bytes", ".1f", 1e-6), number("tool_seconds", ".0f"), number("own_benchmark_ms", ".3g"),
            row.get("problem") or ""]  # fmt: skip


def main() -> int:
    parser = cli.Parser(prog="python benchmarks/peers.py", description=__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"), metavar="DIR")
    parser.add_argument("--tools", default=",".join(TOOLS), help=f"of {', '.join(TOOLS)}; or none")
    parser.add_argument("--own", default=",".join(sum(OWN.values(), ())), metavar="A,B", help="engines without a tool")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="timed seconds a row")
    parser.add_argument("--processes", type=cli.positive, default=PROCESSES, help="that share a row's rounds")
    parser.add_argument("--images", type=cli.positive, default=1000, help="test images (default: 1000)")
    parser.add_argument("--batch", type=cli.positive, default=1)
    parser.add_argument("--threads", type=cli.positive, default=manifest.usable_threads(), help="default: all cores")
    parser.add_argument("--limit", type=float, default=600.0, metavar="S", help="for installing or running one tool")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "peers-cpu.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "peers.md")
    arguments = parser.parse_args()
    typed = [] if arguments.tools == "none" else arguments.tools.split(",")
    names = [cli.choose(name, TOOLS, "tool") for name in typed]
    threads = arguments.threads
    plan = Plan(backends=("onnxruntime",), batches=(arguments.batch,), threads=(threads,), checked=16,
                seconds=arguments.seconds, processes=arguments.processes)  # fmt: skip
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sides = [_side(model, arguments, work, stack) for model in arguments.models]
        for name in names:
            print(f"{name}: installing {' '.join(TOOLS[name]['packages'])}", file=sys.stderr, flush=True)
            with environment(name, work, arguments.limit) as (python, problem):
                for side in sides:
                    if problem is None:
                        side.run_tool(name, python, arguments.limit)
                    else:
                        side.entries.append(Entry(tool=name, problem=f"not installed: {problem}"))
                    last = side.entries[-1]
                    print(f"  {side.model}: {last.problem or 'made'}", file=sys.stderr, flush=True)
        models = {side.model: side.measure(plan, arguments.images) for side in sides}
    document = {
        "environment": msgspec.to_builtins(manifest.environment()), "threads": threads, "batch": arguments.batch,
        "calibration": sides[0].job.calibration_images, "tools": {name: TOOLS[name]["packages"] for name in names},
        "models": models,
    }  # fmt: skip
    manifest.write_atomic(arguments.results, (json.dumps(document, indent=1) + "\n").encode())
    manifest.write_atomic(arguments.page, page(document).encode())
    print(page(document))
    return cli.OK


def _side(model: str, arguments: argparse.Namespace, work: Path, stack: contextlib.ExitStack) -> Side:
    job, _ = options.opened(options.arguments_of(model, artifacts=arguments.artifacts), stack)
    if not best.path(job.folder).is_file():
        raise UserError(f"{best.path(job.folder)}: not there; make it with: python -m runtime tune {model}")
    return Side(model, job, arguments.artifacts, work, arguments.own.split(","))


if __name__ == "__main__":
    cli.run(main)

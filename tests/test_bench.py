"""The matrix, run for real: workers that measure, crash, hang and take too much; reports; the command line."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import runtime_artifacts
from commands import run
from onnx import TensorProto, helper, numpy_helper

from runtime import saved, targets
from runtime.bench import Bench
from runtime.contender import Contender
from runtime.machine import State
from runtime.measure import REGIMES
from runtime.plan import Plan
from runtime.report import summary, table
from runtime.results import Report
from trainers.manifest import UserError, environment
from trainers.process import Worker, WorkerError
from trainers.quiet import STAT, other_load

pytestmark = pytest.mark.slow
GIB = 1 << 30


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runtime_artifacts.make(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def report(made: Path) -> Report:
    """One run in this process: three artifacts, two engines, two batch sizes."""
    plan = Plan(backends=("eager", "onnxruntime", "tensorrt", "null"), batches=(1, 4), rounds=4, processes=2,
                seconds=0.2)  # fmt: skip
    found, stale = targets.resolve(["simplecnn"], made.parent, None)
    assert not stale
    return Bench(found, plan, environment()).run()


def small(path: Path, nodes: list[onnx.NodeProto], *values: tuple[str, np.ndarray]) -> Path:
    """A model x float [n, 3, 4, 4] -> y."""
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in values],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def endless(path: Path) -> Path:
    """A valid model that loops 2^62 times."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Identity", ["v"], ["w"])], "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("v", TensorProto.FLOAT, None)],
        [info("go_on", TensorProto.BOOL, []), info("w", TensorProto.FLOAT, None)],
    )  # fmt: skip
    loop = helper.make_node("Loop", ["trips", "true", "x"], ["y"], body=body)
    return small(path, [loop], ("trips", np.array(2**62)), ("true", np.array(True)))


def huge(path: Path) -> Path:
    """A valid model of 200 bytes that allocates 40 GB."""
    return small(
        path,
        [helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
         helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0),
         helper.make_node("Add", ["zeros", "mean"], ["y"])],
        ("shape", np.array([10**10])),
    )  # fmt: skip


def contender(path: Path, folder: Path, **plan: object) -> Contender:
    (target,), _ = targets.resolve([str(path)], folder, None)
    short = Plan(backends=("onnxruntime",), processes=1, rounds=2, seconds=0.1, **plan)  # type: ignore[arg-type]
    return Contender(target, "onnxruntime", {}, short, threads=1)


def test_every_fitting_pair_is_a_row_with_all_its_samples(report: Report) -> None:
    pairs = sorted({(row.cell.backend, row.cell.artifact) for row in report.measurements if row.check})
    assert pairs == [
        ("eager", "simplecnn-torch-exact-fp32"),
        ("onnxruntime", "simplecnn-dynamo-exact-fp32"),
        ("onnxruntime", "simplecnn-dynamo-exact-int8"),
    ]
    assert len(report.measurements) == 2 * (len(pairs) + 3 + 1)  # null's three, and the baseline's twin
    for row in report.measurements:
        assert row.valid, row.error
        assert len(row.rounds_s) == 4
        assert row.processes == (0, 0, 1, 1)
        assert row.median.low <= row.median.value <= row.median.high


def test_rows_are_verified_in_the_timed_session_and_null_is_not_ranked(report: Report) -> None:
    for row in report.measurements:
        assert report.verified(row) == (row.cell.backend != "null")
        assert (report.speedup(row) is None) == (row.cell.backend == "null")


def test_ratios_are_to_eager_fp32_and_without_it_to_onnx_runtime(report: Report) -> None:
    eager = next(row for row in report.of("simplecnn") if row.cell.backend == "eager" and row.cell.batch == 4)
    base = report.baseline(eager)
    assert base is eager
    assert (base.cell.backend, base.cell.batch) == ("eager", 4)
    ratio = report.speedup(base)
    assert ratio
    assert ratio.value == ratio.low == ratio.high == 1.0
    rest = tuple(row for row in report.measurements if row.cell.backend != "eager")
    lean = msgspec.structs.replace(report, measurements=rest)
    base = lean.baseline(rest[0])
    assert base
    assert (base.cell.backend, base.cell.artifact) == ("onnxruntime", "simplecnn-dynamo-exact-fp32")
    assert "ONNX Runtime fp32 (no eager row)" in table.title(lean, "simplecnn")


def test_a_missing_engine_is_a_line_with_its_reason(report: Report) -> None:
    if "tensorrt" in report.unavailable:
        assert any(line.startswith("not measured: tensorrt: ") for line in table.failures(report))


def test_one_sentence_a_batch_names_the_fastest_verified_row(report: Report) -> None:
    for batch, sentence in zip((1, 4), summary.sentences(report), strict=True):
        rows = [row for row in report.measurements if row.cell.batch == batch and report.verified(row)]
        fastest = min(rows, key=lambda row: row.median.value)
        assert report.subject(fastest).drop is not None
        allowed = [row for row in rows if (report.subject(row).drop or 0.0) <= report.plan.max_drop]
        assert min(allowed, key=lambda row: row.median.value).cell.artifact in sentence


def test_a_busy_machine_is_said_wherever_a_ratio_is(report: Report) -> None:
    quiet, busy = (msgspec.structs.replace(report, states=(State(other_load=load),)) for load in (0.05, 1.5))
    assert "DISTURBED: others used 1.5 cores" in table.title(busy, "simplecnn")
    assert "DISTURBED" not in table.title(quiet, "simplecnn")
    assert all("provisional" in sentence for sentence in summary.sentences(busy))
    assert not any("provisional" in sentence for sentence in summary.sentences(quiet))


@pytest.mark.skipif(not STAT.exists(), reason="only Linux tells")
def test_another_programs_work_is_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            load = other_load()
        finally:
            process.kill()
    assert load is not None
    assert load > 0.5


def test_a_report_reads_back_as_it_was(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report


def test_a_crash_becomes_a_row_and_the_next_batch_starts_afresh(made: Path) -> None:
    runner = contender(made / "simplecnn-dynamo-exact-fp32.onnx", made.parent)
    try:
        runner.load(1, 0)
        runner.settle(2)
        assert runner._worker
        os.kill(runner._worker.pid, signal.SIGSEGV)
        runner.turn()
        runner.turn()
        row = runner.rows()[0]
        assert not row.valid
        assert row.error
        assert row.error.startswith("crashed: SIGSEGV")
        runner.load(2, 0)
        runner.settle(2)
        runner.turn()
        assert runner.rows()[0].valid
    finally:
        runner.close()


def test_there_are_as_many_rounds_as_the_slowest_row_has_time_for(made: Path) -> None:
    plan = Plan(backends=("null", "onnxruntime"), processes=1, seconds=0.5, twin=False)
    assert [plan.rounds_of(seconds) for seconds in (1e-6, 2e-3, 10.0)] == [256, 83, 32]
    assert msgspec.structs.replace(plan, rounds=5).rounds_of(10.0) == 5
    (target,), _ = targets.resolve([str(made / "simplecnn-dynamo-exact-fp32.onnx")], made.parent, None)
    report = Bench([target], plan, environment()).run()
    assert {(row.rounds, len(row.rounds_s)) for row in report.measurements} == {(256, 256)}


def test_what_memory_does_not_hold_runs_in_heats_with_the_baseline_in_each(made: Path) -> None:
    """A machine that is said to have too little memory for two workers."""
    found, _ = targets.resolve(["simplecnn"], made.parent, None)
    tiny = msgspec.structs.replace(environment(), memory_bytes=1 << 20)
    plan = Plan(backends=("onnxruntime",), rounds=2, processes=1, seconds=0.05, twin=False)
    report = Bench(found, plan, tiny).run()
    heats = [[row for row in report.measurements if row.heat == heat] for heat in (0, 1)]
    base = heats[0][0]
    if len(heats[0]) == 1:  # loaded first, by lot; the second heat has it again
        again, int8 = heats[1]
        assert report.baseline(int8) is again
        assert again.cell == base.cell
    else:
        assert not heats[1]
        assert report.baseline(heats[0][1]) is base
    assert report.baseline(base) is base
    assert [row.cell.artifact for row in table.ordered(report.measurements)].count(base.cell.artifact) == 1


def test_sweeps_and_regimes_are_rows_compared_with_their_like(made: Path) -> None:
    found, _ = targets.resolve([str(made / "simplecnn-dynamo-exact-fp32.onnx")], made.parent, None)
    plan = Plan(backends=("onnxruntime",), threads=(1, 2), regimes=tuple(REGIMES), rounds=2, processes=1,
                seconds=0.05, options=({"graph": "all"}, {"graph": "basic"}), twin=False, checked=16)  # fmt: skip
    report = Bench(found, plan, environment()).run()
    assert len(report.measurements) == 2 * 2 * 3
    assert all(row.valid for row in report.measurements)
    assert {row.check.images for row in report.measurements if row.check} == {16}
    for row in report.measurements:
        base = report.baseline(row)
        assert base is not None
        assert base.cell.conditions == row.cell.conditions
        assert not base.cell.options
    assert {"threads>", "regime"} <= set(table.columns(report))


def test_keeping_the_rounds_takes_a_twentieth_of_the_time() -> None:
    now, kept = 0.0, []

    def save(number: int) -> None:
        nonlocal now
        now += 1.0
        kept.append(number)

    keeper = saved.Keeper(save, clock=lambda: now)
    for number in range(1000):
        keeper.keep(number)
        now += 0.5
    assert kept[0] == 0
    assert 0.04 * now < len(kept) < 0.06 * now
    keeper.keep(1000)
    assert kept[-1] < 1000, "passed over"
    keeper.flush()
    keeper.flush()
    assert kept.count(1000) == 1


def test_an_interrupted_run_goes_on_with_the_rounds_that_are_left(made: Path, tmp_path: Path) -> None:
    for path in made.glob("*.*"):
        (tmp_path / "simplecnn").mkdir(exist_ok=True)
        (tmp_path / "simplecnn" / path.name).write_bytes(path.read_bytes())
    arguments = ["bench", "simplecnn", "--artifacts", str(tmp_path), "--backends", "onnxruntime", "--rounds", "6",
                 "--seconds", "6"]  # fmt: skip
    victim = subprocess.Popen([sys.executable, "-m", "runtime", *arguments], stderr=subprocess.PIPE, text=True)
    reports = tmp_path / "reports"
    while victim.poll() is None and not list(reports.glob("unfinished-*.json")):
        time.sleep(0.05)
    victim.send_signal(signal.SIGINT)
    said = victim.communicate(timeout=240)[1]
    assert victim.returncode == 130
    assert "the same command with --resume goes on" in said
    (unfinished,) = reports.glob("*.json")
    begun = Report.load(unfinished)
    assert not begun.complete
    taken = len(begun.measurements[0].rounds_s)
    assert 1 <= taken < 6
    done = run("runtime", *arguments, "--resume")
    assert done.returncode == 0, done.stderr
    (path,) = reports.glob("*.json")
    report = Report.load(path)
    assert report.complete
    for old, new in zip(begun.measurements, report.measurements, strict=True):
        assert new.rounds_s[:taken] == old.rounds_s
        assert len(new.rounds_s) == 6
        assert new.processes[:taken] == old.processes
        assert list(new.processes) == sorted(new.processes)
        assert new.processes[taken] > old.processes[-1]


@pytest.fixture(scope="module")
def raced(made: Path) -> Report:
    """Three rounds of two rows."""
    found, _ = targets.resolve(["simplecnn"], made.parent, None)
    return Bench(found, THREE_ROUNDS, environment()).run()


THREE_ROUNDS = Plan(backends=("onnxruntime",), rounds=3, processes=1, seconds=0.05, twin=False)


def gone_on_with(made: Path, known: Report) -> Report:
    found, _ = targets.resolve(["simplecnn"], made.parent, None)
    return Bench(found, THREE_ROUNDS, environment(), known=known).run()


def test_rounds_that_had_other_company_are_taken_anew(made: Path, raced: Report) -> None:
    """An engine that was installed between an interrupted run and its resumption."""
    first = raced.measurements[0]
    begun = msgspec.structs.replace(first, rounds_s=first.rounds_s[:2], processes=first.processes[:2])
    report = gone_on_with(made, msgspec.structs.replace(raced, measurements=(begun,), complete=False))
    assert [len(row.rounds_s) for row in report.measurements] == [3, 3]
    again = next(row for row in report.measurements if row.cell == first.cell)
    assert again.rounds_s[:2] != begun.rounds_s
    assert all(report.speedup(row) for row in report.measurements)


def test_what_ran_is_asked_though_all_rounds_are_there(made: Path, raced: Report) -> None:
    """An interruption between the last round and that question."""
    rows = tuple(msgspec.structs.replace(row, ran=None) for row in raced.measurements)
    report = gone_on_with(made, msgspec.structs.replace(raced, measurements=rows, complete=False))
    by_cell = {row.cell.artifact: row for row in raced.measurements}
    for row in report.measurements:
        assert row.rounds_s == by_cell[row.cell.artifact].rounds_s
        assert row.ran is not None
        assert row.ran == by_cell[row.cell.artifact].ran


def test_a_file_that_never_ends_is_given_up(tmp_path: Path) -> None:
    runner = contender(endless(tmp_path / "endless.onnx"), tmp_path, timeout=10.0)
    try:
        runner.load(1, 0)
        assert runner.rows()[0].error == "hung: no answer to 'load' within 10 s"
    finally:
        runner.close()


def test_a_file_that_takes_all_memory_is_stopped(tmp_path: Path) -> None:
    runner = contender(huge(tmp_path / "huge.onnx"), tmp_path, memory_bytes=2 * GIB)
    try:
        runner.load(1, 0)
        error = runner.rows()[0].error
        assert error
        assert "ConstantOfShape" in error
        assert "\n" not in error
    finally:
        runner.close()


def test_a_damaged_artifact_is_not_measured(made: Path, tmp_path: Path) -> None:
    for path in made.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    victim = tmp_path / "simplecnn-dynamo-exact-int8.onnx"
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    found, _ = targets.resolve([str(tmp_path)], tmp_path, None)
    plan = Plan(backends=("onnxruntime",), rounds=2, processes=1, seconds=0.1)
    rows = {row.cell.artifact: row for row in Bench(found, plan, environment()).run().measurements}
    assert "sha256 differs" in (rows[victim.stem].error or "")
    assert rows["simplecnn-dynamo-exact-fp32"].valid
    with pytest.raises(UserError, match="sha256 differs"):
        targets.resolve([str(victim)], tmp_path, None)


def test_workers_of_engines_without_torch_do_not_import_it(made: Path) -> None:
    worker = Worker("runtime.worker", threads=1)
    try:
        path = made / "simplecnn-dynamo-exact-int8.onnx"
        started = time.monotonic()
        worker.ask("open", timeout=240, path=str(path), backend="onnxruntime", device="cpu", threads=1, options={})
        worker.ask("load", timeout=240, batch=2, input=[None, 3, 32, 32])
        assert time.monotonic() - started < 30
        assert worker.ask("modules", timeout=240, names=["torch", "onnxruntime"]) == {"imported": ["onnxruntime"]}
    finally:
        worker.close()


def test_an_idle_worker_is_stopped_and_ends_when_closed() -> None:
    worker = Worker("runtime.worker", threads=1)
    worker.ask("modules", timeout=240, names=[])
    status = Path(f"/proc/{worker.pid}/status")
    deadline = time.monotonic() + 5
    while "State:\tT" not in status.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "State:\tT" in status.read_text()
    worker.close()
    assert not status.exists()


def test_a_killed_worker_is_named_by_its_signal() -> None:
    worker = Worker("runtime.worker", threads=1)
    try:
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match="crashed: SIGKILL"):
            worker.ask("modules", timeout=240, names=[])
    finally:
        worker.close()


def test_an_older_checkpoints_artifacts_are_left_out_unless_named(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "simplecnn"
    folder.mkdir()
    for path in made.glob("*.*"):
        (folder / path.name).write_bytes(path.read_bytes())
    record = json.loads((folder / "checkpoint.json").read_text())
    record["files"][0]["sha256"] = 64 * "0"
    (folder / "checkpoint.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="older checkpoint"):
        targets.resolve(["simplecnn"], tmp_path, None)
    found, _ = targets.resolve([str(folder / "simplecnn-dynamo-exact-fp32.onnx")], tmp_path, None)
    assert [target.subject.name for target in found] == ["simplecnn-dynamo-exact-fp32"]


def test_the_command_line_measures_and_reports(made: Path) -> None:
    done = run(
        "runtime", "bench", "simplecnn", "--artifacts", made.parent, "--backends", "eager,onnxruntime",
        "--rounds", 3, "--seconds", 0.2, "--threads", 1, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert len(document["measurements"]) == 4
    assert [row["cell"]["artifact"] for row in document["measurements"] if row["cell"]["twin"]] == [
        "simplecnn-torch-exact-fp32"
    ]
    assert "fastest verified variant" in done.stderr
    (saved,) = (made.parent / "reports").glob("*.json")
    assert json.loads(saved.read_text()) == document
    again = run("runtime", "report", "--artifacts", made.parent, "--csv")
    lines = list(csv.DictReader(io.StringIO(again.stdout)))
    assert {line["outputs"] for line in lines} == {"verified"}
    shown = run("runtime", "report", "--artifacts", made.parent)
    assert "times faster than eager fp32" in shown.stdout
    assert str(saved) in shown.stdout


def test_a_file_without_a_record_is_measured_and_not_recommended(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "foreign.onnx"
    path.write_bytes((made / "simplecnn-dynamo-exact-fp32.onnx").read_bytes())
    done = run("runtime", "bench", path, "--artifacts", tmp_path, "--backends", "onnxruntime",
               "--rounds", 2, "--processes", 1, "--seconds", 0.1)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "unverified" in done.stdout
    assert "no verified variant" in done.stdout


def test_files_that_are_no_model_are_refused_in_one_line(made: Path, tmp_path: Path) -> None:
    whole = (made / "simplecnn-dynamo-exact-fp32.onnx").read_bytes()
    broken = {"empty": b"", "text": b"this is text\n", "truncated": whole[: len(whole) // 2]}
    for name, content in broken.items():
        (tmp_path / f"{name}.onnx").write_bytes(content)
    for name in [*broken, "missing"]:
        done = run("runtime", "bench", tmp_path / f"{name}.onnx", "--artifacts", tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bench", "simplecnnn"), "there are: simplecnn"),
        (("bench", "simplecnn", "--backends", "onnxruntim"), "did you mean onnxruntime"),
        (("bench", "simplecnn", "--threads", "4096"), "give at most as many"),
        (("bench", "simplecnn", "--option", "graph"), "not key=value"),
        (("bench", "simplecnn", "--option", "graph=some"), "choose from all, extended"),
        (("report", "nowhere.json"), "no such report"),
        (("view", "nowhere.onnx"), "no such file"),
        (("view", "simplecnnn"), "no model or file"),
    ],
)
def test_mistakes_are_one_line(made: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run("runtime", *arguments, "--artifacts", made.parent)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_nothing_measured_is_a_failure(tmp_path: Path) -> None:
    huge(tmp_path / "huge.onnx")
    done = run("runtime", "bench", tmp_path / "huge.onnx", "--backends", "eager,tensorrt",
               "--artifacts", tmp_path)  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_view_serves_the_graph_on_this_machine(made: Path) -> None:
    command = [sys.executable, "-m", "runtime", "view", "simplecnn", "--artifacts", str(made.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        line = process.stdout.readline()
        address = line.split(" at ")[1].split()[0]
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address, timeout=240) as page:
            assert b"netron" in page.read().lower()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 0

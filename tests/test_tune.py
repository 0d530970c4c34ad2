"""The search for the fastest form, run for real on a small trained model: what it recommends, keeps and refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
import runtime_artifacts
from commands import run
from PIL import Image

from export.artifact import Artifact, find
from export.variant import Variant
from runtime import best, load
from runtime.results import Report
from runtime.tuning import space
from runtime.tuning.accuracy import Accuracy
from runtime.tuning.best import Best, pareto
from runtime.tuning.candidate import Candidate, Trace
from trainers.manifest import gpu
from trainers.stats import Estimate

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
BRIEF = ("--engines", "onnxruntime", "--images", 200, "--threads", 1, "--budget", "60s")


def candidate(name: str, seconds: float, drop: float | None, size: int = 1000) -> Candidate:
    judged = None
    if drop is not None:
        judged = Accuracy(split="val", images=100, drop=drop, drop_interval=(drop, drop), agreement=99.0, labelled=True)
    faster = Estimate(1 / seconds, 1 / seconds, 1 / seconds)
    return Candidate(artifact=name, backend="onnxruntime", options={}, bytes=size, seconds=seconds, faster=faster,
                     accuracy=judged)  # fmt: skip


def test_the_pareto_set_is_what_nothing_beats_in_everything() -> None:
    rows = [candidate("fast", 1.0, 1.0), candidate("exact", 3.0, 0.0), candidate("beaten", 3.5, 0.5),
            candidate("small", 4.0, 2.0, size=10), candidate("unjudged", 0.1, None)]  # fmt: skip
    assert [one.artifact for one in pareto(rows)] == ["fast", "exact", "small"]


def test_forms_differ_from_each_other_and_neighbours_by_one_thing() -> None:
    record = Artifact.load(GOLDEN / "artifact-2.json")
    plain = record.variant
    first = space.first(plain, "cpu")
    assert first[0] == plain
    assert len({form.name("m") for form in first}) == len(first)
    near = list(space.around(record, has_gelu=True, from_module=True))
    assert len(near) >= 5
    for form in near:
        changed = [name for name in Variant.__struct_fields__ if getattr(form, name) != getattr(plain, name)]
        assert len(changed) == 1, changed
    assert {form.exporter for form in space.around(record, has_gelu=False, from_module=False)} <= {plain.exporter}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_setting_that_is_tried_is_one_the_engine_has(device: str) -> None:
    from runtime import backends

    for name, tried in space.SETTINGS[device].items():
        for options in tried:
            for key, value in options.items():
                assert value in backends.get(name).options[key][1:], "a default is no change"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """One search, and where its artifacts lie; the working folder is theirs."""
    home = tmp_path_factory.mktemp("tune")
    made = runtime_artifacts.make(tmp_path_factory.getbasetemp())
    shutil.copytree(made.parent, home / "artifacts")
    done = run("runtime", "tune", "simplecnn", *BRIEF, "--max-drop", 2, "--artifacts",
               home / "artifacts", "--bundle", home / "bundle")  # fmt: skip
    return home, done


@pytest.mark.slow
def test_a_search_ends_with_one_recommendation(tuned: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    home, done = tuned
    assert done.returncode == 0, done.stderr
    folder = home / "artifacts" / "simplecnn"
    found = Best.load(folder / "best.json")
    report = Report.load(home / "artifacts" / found.report)
    rows = [row for row in report.measurements if not row.cell.twin and report.verified(row)]
    mine = next(row for row in rows if (row.cell.artifact, row.cell.options) == (found.artifact, found.options))
    assert mine.median == found.latency_s
    assert mine.median.value == min(row.median.value for row in rows if row.cell.backend == "onnxruntime")
    assert found.accuracy.split == "val"
    assert found.accuracy.images == 200
    assert found.accuracy.drop <= 2
    assert found.baseline == "eager fp32"
    assert f"simplecnn: use {found.artifact} in onnxruntime" in done.stdout
    assert "eager fp32" in done.stdout
    assert "from runtime import best" in done.stdout
    traces = [Trace.load(path) for path in (folder / "tuning").glob("*.json")]
    assert [trace.complete for trace in traces] == [True]
    tried = {one.artifact for one in traces[0].candidates}
    assert {"simplecnn-dynamo-exact-fp32", "simplecnn-dynamo-exact-int8"} <= tried
    assert "best" not in [one.name for one in find(folder)]


@pytest.mark.slow
def test_best_is_what_was_recommended_and_answers_like_the_file(
    tuned: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    artifacts = tuned[0] / "artifacts"
    found = Best.load(artifacts / "simplecnn" / "best.json")
    images = np.random.default_rng(0).normal(size=(1, 1, 28, 28)).astype(np.float32)
    path = artifacts / "simplecnn" / found.file.path
    with best("simplecnn", max_drop=2, artifacts=artifacts) as model:
        assert model.backend == found.backend
        assert model.record is not None
        assert model.record.file == found.file
        with load(path, threads=1, **found.options) as same:
            np.testing.assert_array_equal(model(images), same(images))


@pytest.mark.slow
def test_the_bundle_runs_without_this_project(
    tuned: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    home, _ = tuned
    bundle = tmp_path / "elsewhere"
    shutil.copytree(home / "bundle", bundle)
    assert "torch" not in (bundle / "requirements.txt").read_text()
    pixels = np.random.default_rng(1).integers(0, 256, (40, 33), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    block = "import runpy, sys; sys.modules.update(dict.fromkeys(('torch', 'trainers', 'export', 'runtime')))"
    code = f"{block}; runpy.run_path({str(bundle / 'run.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "picture.png", "--top", "10"], env=clean,
                          capture_output=True, text=True, check=False, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    with best("simplecnn", max_drop=2, artifacts=home / "artifacts") as model:
        expected = model.predict(tmp_path / "picture.png", top=10)
    for name, share in expected[:3]:
        assert f"{name} {share:.1%}" in done.stdout
    (weights,) = bundle.glob("*.onnx")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    done = subprocess.run([sys.executable, bundle / "run.py", tmp_path / "picture.png"], capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 1
    assert "is not the file that was measured" in done.stderr


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_known_and_resume_goes_on(
    tuned: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    shutil.copytree(tuned[0] / "artifacts", tmp_path / "artifacts")
    folder = tmp_path / "artifacts" / "simplecnn"
    shutil.rmtree(folder / "tuning")
    recommended = (folder / "best.json").read_bytes()
    command = [sys.executable, "-m", "runtime", "tune", "simplecnn", *map(str, BRIEF), "--artifacts",
               str(tmp_path / "artifacts")]  # fmt: skip
    victim = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while victim.poll() is None and not list((folder / "tuning").glob("[!.]*.json")):  # a dot: not yet renamed
        time.sleep(0.05)
    victim.send_signal(signal.SIGINT)
    said = victim.communicate(timeout=240)[1]
    assert victim.returncode == 130
    assert "the same command with --resume goes on" in said
    assert (folder / "best.json").read_bytes() == recommended
    (path,) = (folder / "tuning").glob("*.json")
    begun = Trace.load(path)
    assert not begun.complete
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    ended = Trace.load(path)
    assert ended.complete
    assert ended.seconds > begun.seconds
    assert f"screened: {len(begun.candidates)} candidates" not in done.stderr, "what was screened is not screened again"


@pytest.mark.slow
def test_what_cannot_be_kept_is_a_failed_check(
    tuned: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    shutil.copytree(tuned[0] / "artifacts", tmp_path / "artifacts")
    done = run("runtime", "tune", "simplecnn", *BRIEF, "--max-latency", 1e-6, "--artifacts",
               tmp_path / "artifacts")  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "FAILED" in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("simplecnnn",), "simplecnn"),
        (("simplecnn", "--engines", "onnxruntim"), "did you mean onnxruntime"),
        (("simplecnn", "--engines", "tensorrt"), "no engine to search in"),
        (("simplecnn", "--engines", "eager"), "name one more to search in"),
        (("simplecnn", "--engines", "null"), "null: computes nothing"),
        (("simplecnn", "--budget", "soon"), "not a time such as 90s"),
        (("simplecnn", "--threads", "4096"), "give at most as many"),
    ],
)
@pytest.mark.slow
def test_mistakes_are_one_line(
    tuned: tuple[Path, subprocess.CompletedProcess[str]], arguments: tuple[str, ...], says: str
) -> None:
    if "tensorrt" in arguments and gpu():
        pytest.skip("TensorRT may run here")
    done = run("runtime", "tune", *arguments, "--artifacts", tuned[0] / "artifacts")
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_ours_beside_the_engines_themselves(
    tuned: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """benchmarks/peers.py without tools, which would have to be installed."""
    command = [sys.executable, "benchmarks/peers.py", "simplecnn", "--artifacts", str(tuned[0] / "artifacts"),
               "--tools", "none", "--own", "eager,onnxruntime", "--images", "100", "--seconds", "0.2",
               "--processes", "1", "--threads", "1",  # several would wait for each other while other tests run
               "--results", str(tmp_path / "r.json"), "--page", str(tmp_path / "p.md")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "r.json").read_text())["models"]["simplecnn"]
    rows = {(row["tool"], row.get("engine")): row for row in found["rows"]}
    ours = next(row for (tool, _), row in rows.items() if tool == "ours")
    eager = rows["PyTorch", "eager"]
    assert found["ours_ms"] == ours["ms"]
    assert found["best_peer_ms"] <= eager["ms"]
    assert eager["ratio"] == pytest.approx(eager["ms"] / ours["ms"], rel=0.5)
    assert rows["no tool, fp32", "onnxruntime"]["drop"] == 0
    assert "times as fast" in (tmp_path / "p.md").read_text()


def test_a_recommendation_reads_back_as_it_was(tmp_path: Path) -> None:
    trace = Trace(key="k", seconds=1.0, candidates=(candidate("a", 1.0, 0.5),), failures={"b": "why"})
    trace.save(tmp_path / "trace.json")
    assert Trace.load(tmp_path / "trace.json") == trace
    assert msgspec.structs.replace(trace, complete=True) != trace

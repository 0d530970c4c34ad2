"""`--profile`: the files of a profiled run, and a run that does not notice."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from commands import expect_refusal, succeed

from trainers.checkpoint import Checkpoint
from trainers.flame import frames
from trainers.manifest import UserError
from trainers.profiling import Window

SVG = "{http://www.w3.org/2000/svg}"
TRAIN = ("trainers", "simplecnn", "--device", "cpu", "--steps", 8)


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of a run with profiled steps 3 to 5, and its lines on stderr."""
    folder = tmp_path_factory.mktemp("profiled")
    done = succeed(*TRAIN, "--artifacts", folder / "artifacts", "--profile", "3:3")
    return folder, done.stderr.splitlines()


def trace_of(folder: Path) -> dict:
    return json.loads((folder / "artifacts/simplecnn/profile/profiler_simplecnn_trace.json").read_text())


def test_the_trace_holds_these_steps_alone(profiled: tuple[Path, list[str]]) -> None:
    events = trace_of(profiled[0])["traceEvents"]
    steps = sorted(event["name"] for event in events if re.match(r"step \d", event["name"]))
    assert steps == ["step 3", "step 4", "step 5"]
    assert sum(event["name"] == "aten::convolution_backward" for event in events) == 3
    assert any("Input Dims" in event.get("args", {}) for event in events)


def test_the_last_lines_name_the_costliest_operators(profiled: tuple[Path, list[str]]) -> None:
    folder, lines = profiled
    assert "profiler_simplecnn_trace.json" in lines[-2]
    closing = re.fullmatch(r"costliest operators of steps 3 to 5, by their own time on the CPU: (.*)", lines[-1])
    assert closing, lines[-1]
    shares = [float(share) for share in re.findall(r"aten::\w+ ([\d.]+)%", closing[1])]
    assert len(shares) == 3
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 100
    summary = (folder / "artifacts/simplecnn/profile/profiler_simplecnn_summary.txt").read_text()
    first, second = summary.split("By operator and input shapes")
    named = re.findall(r"aten::\w+", closing[1])
    assert [name for name in re.findall(r"aten::\w+", first) if name in named][:3] == named
    assert "Self CPU Mem" in first
    assert re.search(r"aten::addmm .*\[\[10\], \[\d+, \d+\]", second)


def test_nothing_else_is_printed_by_the_profiler(profiled: tuple[Path, list[str]]) -> None:
    assert not [line for line in profiled[1] if re.search(r"Profiler|\.cpp|WARN|ERROR", line)]


def test_tensorboards_plugin_finds_the_same_trace(profiled: tuple[Path, list[str]]) -> None:
    (file,) = (profiled[0] / "logs/simplecnn/profile").iterdir()
    assert re.fullmatch(r".+\.\d+\.pt\.trace\.json", file.name)
    assert json.loads(file.read_text()) == trace_of(profiled[0])


def test_the_flame_graph_shows_the_stacks_of_the_trace(profiled: tuple[Path, list[str]]) -> None:
    root = ElementTree.parse(profiled[0] / "artifacts/simplecnn/profile/profiler_simplecnn_flame.svg").getroot()
    width = float(root.attrib["width"])
    titles = [title.text or "" for title in root.iter(f"{SVG}title")]
    assert any(re.match(r"aten::addmm: [\d.]+ ms, [\d.]+%, \d+ calls", title) for title in titles)
    assert any(re.match(r"step: .*, 3 calls", title) for title in titles)
    labels = 0
    for group in root.iter(f"{SVG}g"):
        box, text = group.find(f"{SVG}rect"), group.find(f"{SVG}text")
        assert box is not None
        assert 0 <= float(box.attrib["x"]) <= float(box.attrib["x"]) + float(box.attrib["width"]) <= width + 0.01
        if text is not None:
            labels += 1
            assert len(text.text or "") * 6.6 <= float(box.attrib["width"])
    assert labels > 5


def test_stacks_are_merged_and_threads_kept_apart() -> None:
    def event(name: str, start: float, length: float, thread: int = 1, kind: str = "cpu_op") -> dict:
        return {"ph": "X", "cat": kind, "name": name, "tid": thread, "ts": start, "dur": length}

    root = frames({"traceEvents": [
        event("step 7", 0, 10, kind="user_annotation"), event("a", 1, 4), event("b", 2, 2), event("a", 5, 3),
        event("step 8", 10, 10, kind="user_annotation"), event("b", 11, 1),
        event("a", 0, 5, thread=2), event("matmul", 3, 4, thread=7, kind="kernel"), event("other", 0, 99, kind="Trace"),
    ]}, "run")  # fmt: skip
    step = root.callees["thread 1"].callees["step"]
    assert (step.duration, step.calls) == (20, 2)
    assert (step.callees["a"].duration, step.callees["a"].calls) == (7, 2)
    assert step.callees["a"].callees["b"].duration == 2
    assert step.callees["b"].duration == 1
    assert root.callees["GPU stream 7"].callees["matmul"].duration == 4
    assert root.duration == 20 + 5 + 4


def test_profiling_changes_no_bit_of_the_result(profiled: tuple[Path, list[str]], tmp_path: Path) -> None:
    succeed(*TRAIN, "--artifacts", tmp_path)
    plain = Checkpoint.load(tmp_path / "simplecnn" / "checkpoint.json")
    watched = Checkpoint.load(profiled[0] / "artifacts" / "simplecnn" / "checkpoint.json")
    assert plain.weights == watched.weights
    assert plain.metrics.loss == watched.metrics.loss
    assert not (tmp_path / "simplecnn" / "profile").exists()


def test_a_run_without_it_loads_no_profiler(tmp_path: Path) -> None:
    program = (
        "import sys; sys.argv = ['x', 'simplecnn', '--device', 'cpu', '--steps', '1', '--artifacts', sys.argv[1]]\n"
        "import torch; before = set(sys.modules)\n"
        "from trainers.__main__ import main; main()\n"
        "print(sorted(name for name in set(sys.modules) - before if 'flame' in name or 'torch.profiler' in name))"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--profile", "soon"), "FIRST:COUNT"),
        (("--profile", "0:2"), "FIRST:COUNT"),
        (("--profile", "7:5"), "steps 1 to 8, not steps 7 to 11"),
    ],
)
def test_steps_that_are_none_are_refused(tmp_path: Path, flags: tuple[str, ...], says: str) -> None:
    expect_refusal(*TRAIN, *flags, "--artifacts", tmp_path, says=says)


@pytest.mark.parametrize(
    ("begin", "ends", "window"),
    [(0, [50, 100], (10, 5)), (0, [8], (4, 5)), (0, [3], (1, 3)), (0, [12, 24], (13, 5)), (60, [50, 100], (61, 5))],
)
def test_the_default_moves_to_where_the_run_has_steps(begin: int, ends: list[int], window: tuple[int, int]) -> None:
    found = Window(movable=True).fitted(begin, ends)
    assert (found.first, found.count) == window


def test_steps_of_two_epochs_are_refused() -> None:
    with pytest.raises(UserError, match="an epoch ends between steps 10 to 14, at step 12"):
        Window(10, 5).fitted(0, [12, 24])

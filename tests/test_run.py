"""The whole line as one command: its plan, its display, what it does where a step fails. test_line.py runs it whole."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from checkpoints import random_checkpoint
from commands import expect_refusal, lines_of, on_a_terminal, run, succeed, wait_until_alone

from runtime.line import driver
from runtime.line.display import FAILED
from runtime.line.step import Step

ENDS_S = 120  # a killed run's command has ended by then


class Recorder:
    """A Display that remembers."""

    def __init__(self) -> None:
        self.said: list[tuple[str, float, float | None]] = []
        self.ends: dict[int, tuple[str, str]] = {}

    def begin(self, number: int) -> None:
        self.number = number

    def update(self, number: int, what: str, done: float, total: float | None) -> None:
        self.said.append((what, done, total))

    def end(self, number: int, state: str, line: str) -> None:
        self.ends[number] = state, line


@pytest.mark.slow
def test_a_plan_says_what_would_be_done_and_does_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "artifacts"
    done = succeed("runtime", "run", "simplecnn", "resnet18", "--tune", "--budget", "1m", "--dry-run",
                   "--artifacts", folder)  # fmt: skip
    assert not folder.exists()
    titles = [line.split("  ")[0].strip() for line in done.stdout.splitlines()[4:]]
    assert [title for title in titles if title] == [
        "train simplecnn", "export simplecnn", "tune simplecnn", "train resnet18", "export resnet18", "tune resnet18",
        "bench simplecnn resnet18", "roofline", "profile simplecnn", "profile resnet18", "report",
    ]  # fmt: skip
    assert f"python -m runtime tune simplecnn --resume --max-drop 1 --budget 60s --artifacts {folder}" in done.stdout


def test_what_cannot_be_is_refused_before_any_work(tmp_path: Path) -> None:
    random_checkpoint(tmp_path, "simplecnn")
    place = ("--artifacts", tmp_path)
    expect_refusal("runtime", "run", "simplecnnn", *place, says="did you mean simplecnn?")
    expect_refusal("runtime", "run", "nets.onnx", *place, says="python -m runtime tune nets.onnx")


@pytest.mark.slow
def test_a_checkpoint_of_other_data_is_not_taken_for_the_one_asked_for(tmp_path: Path) -> None:
    succeed("trainers", "simplecnn", "--steps", 2, "--artifacts", tmp_path)
    expect_refusal("runtime", "run", "simplecnn", "--data", tmp_path, "--artifacts", tmp_path,
                   says="was trained on synthetic; leave --data out")  # fmt: skip


def test_weights_from_elsewhere_are_not_taken_for_trained_on_the_data_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "simplecnn" / "checkpoint.json"
    msgspec.structs.replace(random_checkpoint(tmp_path, "simplecnn"), provenance="pretrained").save(path)
    expect_refusal("runtime", "run", "simplecnn", "--data", "synthetic", "--dry-run", "--artifacts", tmp_path,
                   says="holds weights that were not trained here (pretrained); leave --data out")  # fmt: skip


@pytest.mark.slow
def test_a_failed_check_is_noted_and_the_line_goes_on(tmp_path: Path) -> None:
    random_checkpoint(tmp_path / "good", "simplecnn")
    random_checkpoint(tmp_path / "bad", "simplecnn")
    weights = tmp_path / "bad" / "simplecnn" / "checkpoint.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    steps = [
        Step(stage="check", models=(), command=("export.check", str(tmp_path / "bad"))),
        Step(stage="train", models=("simplecnn",), note="there"),
        Step(stage="train", models=("simplecnn",),
             command=("trainers", "simplecnn", "--steps", "2", "--artifacts", str(tmp_path / "good"))),
    ]  # fmt: skip
    seen = Recorder()
    outcome = driver.drive(steps, tmp_path / "logs" / "run.log", seen)
    assert len(outcome.problems) == 1
    assert seen.ends[0][0] == FAILED
    assert [seen.ends[number][0] for number in (1, 2)] == ["done", "done"]
    assert any(what.startswith("test") for what, _, _ in seen.said), "the command's progress has come through"
    assert "$ python -m trainers simplecnn" in (tmp_path / "logs" / "run.log").read_text()


LIVE = """if True:
    from runtime.line.display import showing
    from runtime.line.step import Step
    steps = [Step(stage="train", models=("simplecnn",), command=("x",), seconds=2.0),
             Step(stage="bench", models=("simplecnn", "resnet18", "convnext"), command=("x",), seconds=3.0)]
    with showing(steps) as display:
        display.begin(0)
        display.update(0, "epoch 1", 3, 10)
        display.end(0, "done", "OK: " + "all that there was to say " * 9)
        display.begin(1)
"""


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_live_display_keeps_bars_and_times_beside_a_long_line(width: int) -> None:
    status, said = on_a_terminal(width, "-c", LIVE)
    assert status == 0
    lines = lines_of(said)
    assert max(map(len, lines)) <= width
    (over,) = {line.rstrip() for line in lines if line.startswith("✓ train simplecnn")}
    assert re.search(r"━+ 0:00:0\d +0:00:00 OK: all", over), "elapsed and remaining stay"
    assert over.endswith("…")


@pytest.mark.slow
@pytest.mark.parametrize("width", [60, 100])
def test_the_plan_fits_the_terminal_and_loses_no_word(tmp_path: Path, width: int) -> None:
    random_checkpoint(tmp_path, "simplecnn")
    command = ("-m", "runtime", "run", "simplecnn", "--dry-run", "--artifacts", tmp_path)
    status, said = on_a_terminal(width, *command)
    assert status == 0
    lines = lines_of(said)
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    assert {"--quantize", "--resume", "--html", "--logs"} <= set(words)
    assert sum(line.rstrip().endswith((" s", " min")) for line in lines) >= 3, "every step has its time"


@pytest.mark.slow
def test_on_a_terminal_there_is_one_live_display_and_ctrl_c_ends_the_command(tmp_path: Path) -> None:
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "runtime", "run", "simplecnn", "--quick", "--artifacts", str(tmp_path)]
    started = subprocess.Popen(command, stdout=child, stderr=child, stdin=child,
                               env={**os.environ, "COLUMNS": "120", "TERM": "xterm"})  # fmt: skip
    os.close(child)
    shown = ""
    while "epoch 1" not in shown:
        shown += os.read(parent, 4096).decode(errors="replace")
    started.send_signal(signal.SIGINT)
    while True:
        try:
            shown += os.read(parent, 4096).decode(errors="replace")
        except OSError:  # the terminal's other side is closed
            break
    os.close(parent)
    assert started.wait(ENDS_S) == 130
    assert "▶ train simplecnn" in shown
    assert "the same command goes on from here" in shown
    wait_until_alone(tmp_path)
    assert list((tmp_path / "simplecnn").glob("state-*")), "the interrupted training has saved its state"
    assert run("runtime", "run", "simplecnn", "--dry-run", "--artifacts", tmp_path).returncode == 0

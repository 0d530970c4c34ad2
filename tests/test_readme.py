"""Every command of the README, in its order, as a newcomer would type it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
DEMONSTRATED = ("simplecnn",)  # the others' training takes minutes beside another test
# What made the environment that this test runs in.
SETTING_UP = ("make test", "python3 -m venv", ".venv/bin/pip install")


def jpeg(rng: np.random.Generator) -> bytes:
    buffer = BytesIO()
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def make_data(folder: Path) -> None:
    """Stand-ins for the reader's own files: a folder of images, and an archive in Tiny ImageNet's layout."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 10)):
        for name in ("cats", "dogs"):
            place = folder / "my-images" / split / name
            place.mkdir(parents=True)
            for index in range(count):
                (place / f"{index}.jpg").write_bytes(jpeg(rng))
    with zipfile.ZipFile(folder / "tiny-imagenet-200.zip", "w") as archive:
        ids = [f"n{index:08d}" for index in range(200)]
        top = "tiny-imagenet-200"
        archive.writestr(f"{top}/wnids.txt", "\n".join(ids) + "\n")
        archive.writestr(f"{top}/words.txt", "".join(f"{name}\tthing {name}\n" for name in ids))
        lines = []
        for index, name in enumerate(ids):
            for number in range(10):
                archive.writestr(f"{top}/train/{name}/images/{name}_{number}.JPEG", jpeg(rng))
            archive.writestr(f"{top}/val/images/val_{index}.JPEG", jpeg(rng))
            lines.append(f"val_{index}.JPEG\t{name}\t0\t0\t63\t63\n")
        archive.writestr(f"{top}/val/val_annotations.txt", "".join(lines))


def test_there_are_commands() -> None:
    assert COMMANDS[:2] == ["make demo", "make test"]
    assert len(COMMANDS) > 12


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_every_command_works(tmp_path: Path) -> None:
    make_data(tmp_path)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in COMMANDS:
        if command.startswith(SETTING_UP):
            continue
        if command.startswith("netron"):
            look(command, tmp_path, environment)
            continue
        if command == "make demo":
            installed = f"{sys.prefix}/demo-installed"
            models = " ".join(DEMONSTRATED)
            command = (
                f"make -C {ROOT} demo -o {installed} VENV={sys.prefix} ARTIFACTS={tmp_path}/artifacts MODELS='{models}'"
            )
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        if command.startswith("make"):
            assert "netron" in done.stdout
            assert (tmp_path / "artifacts" / "reports" / "report.html").is_file()
            for model in DEMONSTRATED:
                assert (tmp_path / "artifacts" / model / f"{model}-dynamo-exact-int8.onnx").is_file()


def look(command: str, folder: Path, environment: dict[str, str]) -> None:
    """Netron serves until it is stopped; its page and the graph's file must be there."""
    port = 18_080
    server = subprocess.Popen([*command.split(), "--port", str(port)], cwd=folder, env=environment,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"http://localhost:{port}/", timeout=5) as page:
                    assert b"Netron" in page.read()
                    return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        pytest.fail(f"{command}: no answer")
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=10)

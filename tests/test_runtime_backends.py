"""The contract of every backend: whichever can run here loads real artifacts and gives PyTorch's answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import runtime_artifacts

from export.artifact import Found, find
from runtime import backends
from runtime.backend import Backend, Session
from runtime.check import Reference, answers, home, judge

pytestmark = pytest.mark.slow
DEVICES = ("cpu", "cuda")
USABLE = [(name, device) for name in backends.names() for device in DEVICES if not backends.get(name).unusable(device)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runtime_artifacts.make(tmp_path_factory.getbasetemp())


def artifacts(folder: Path, backend: Backend) -> list[Found]:
    return [found for found in find(folder) if backends.serves(backend, found)]


def test_this_machine_can_run_some() -> None:
    assert {("eager", "cpu"), ("onnxruntime", "cpu"), ("null", "cpu")} <= set(USABLE)


@pytest.mark.parametrize("name", backends.names())
def test_a_backend_says_in_one_line_where_it_cannot_run(name: str) -> None:
    backend = backends.get(name)
    assert isinstance(backend, Backend)
    assert all(len(set(values)) == len(values) > 1 for values in backend.options.values())
    for device in DEVICES:
        reason = backend.unusable(device)
        assert reason is None or (reason and "\n" not in reason)


def test_asking_what_can_run_imports_no_engine() -> None:
    code = (
        "import json, sys; from runtime import backends;"
        "[backends.get(name).unusable(device) for name in backends.names() for device in ('cpu', 'cuda')];"
        "engines = ('torch', 'onnxruntime', 'openvino', 'tensorrt', 'tensorrt_rtx');"
        "print(json.dumps([name for name in engines if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize(("name", "device"), USABLE)
def test_a_session_answers_like_pytorch(made: Path, name: str, device: str) -> None:
    backend, reference = backends.get(name), Reference.load(made / "reference.safetensors")
    for found in artifacts(made, backend):
        session = backend.load(found, device=device, threads=1, batch=5, options={})
        assert isinstance(session, Session)
        assert session.build_s >= 0
        logits = answers(session, reference.images, 5)
        assert len(logits) == len(reference.images)
        assert logits.dtype == np.float32
        if backend.computes and found.record:
            assert judge(logits, reference, found.record).reason == ""
        session.close()


@pytest.mark.parametrize(("name", "device"), USABLE)
def test_fetch_gives_a_copy_of_the_last_step(made: Path, name: str, device: str) -> None:
    backend, reference = backends.get(name), Reference.load(made / "reference.safetensors")
    found = artifacts(made, backend)[0]
    session = backend.load(found, device=device, threads=1, batch=1, options={})
    seen = []
    for image in (reference.images[:1], reference.images[1:2]):
        session.bind(image)
        for _ in range(2):
            session.step()
        session.sync()
        seen.append(session.fetch())
    assert not backend.computes or not np.array_equal(*seen)
    session.close()


def test_a_failed_artifact_finds_its_reference_one_folder_up() -> None:
    assert home(Path("artifacts/m/failed/m.onnx")) == Path("artifacts/m") == home(Path("artifacts/m/m.onnx"))

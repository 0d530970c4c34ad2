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
from runtime.backend import Backend, BackendError, Session
from runtime.check import Reference, answers, home, judge

pytestmark = pytest.mark.slow
DEVICES = ("cpu", "cuda")
USABLE = [(name, device) for name in backends.names() for device in DEVICES if not backends.get(name).unusable(device)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runtime_artifacts.make(tmp_path_factory.getbasetemp())


def artifacts(folder: Path, backend: Backend) -> list[Found]:
    return [found for found in find(folder) if found.kind in backend.formats]


def test_this_machine_can_run_some() -> None:
    assert {("eager", "cpu"), ("onnxruntime", "cpu"), ("null", "cpu")} <= set(USABLE)


@pytest.mark.parametrize("name", backends.names())
def test_a_backend_says_in_one_line_where_it_cannot_run(name: str) -> None:
    backend = backends.get(name)
    assert isinstance(backend, Backend)
    for device in DEVICES:
        reason = backend.unusable(device)
        assert reason is None or (reason and "\n" not in reason)


def test_asking_what_can_run_imports_no_engine() -> None:
    code = (
        "import json, sys; from runtime import backends;"
        "[backends.get(name).unusable(device) for name in backends.names() for device in ('cpu', 'cuda')];"
        "print(json.dumps([name for name in ('torch', 'onnxruntime', 'openvino', 'tensorrt') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize(("name", "device"), USABLE)
def test_a_session_answers_like_pytorch(made: Path, name: str, device: str) -> None:
    backend, reference = backends.get(name), Reference.load(made / "reference.safetensors")
    for found in artifacts(made, backend):
        session = backend.load(found, device=device, threads=1, batch=5, options={})
        assert isinstance(session, Session)
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


def test_onnxruntime_never_falls_back_in_silence(made: Path) -> None:
    if not backends.get("onnxruntime").unusable("cuda"):
        pytest.skip("there is a GPU to run on")
    found = artifacts(made, backends.get("onnxruntime"))[0]
    with pytest.raises(BackendError, match="fallback: asked for CUDAExecutionProvider, got CPUExecutionProvider"):
        backends.get("onnxruntime").load(found, device="cuda", threads=1, batch=1, options={})


def test_openvino_keeps_fp32_unless_asked(made: Path) -> None:
    backend = backends.get("openvino")
    if backend.unusable("cpu"):
        pytest.skip(str(backend.unusable("cpu")))
    found = next(found for found in artifacts(made, backend) if found.name.endswith("fp32"))
    used = [
        backend.load(found, device="cpu", threads=1, batch=1, options=options).attested["precision"]
        for options in ({}, {"precision": "bf16"})
    ]
    assert used == ["f32", "bf16"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorrts_compiler_builds_the_file_without_a_gpu(made: Path, tmp_path: Path) -> None:
    """TensorRT-RTX has the same builder and parser, and compiles for a GPU that is not there."""
    rtx = pytest.importorskip("tensorrt_rtx")
    from runtime.backends import tensorrt

    class Builder(rtx.Builder):  # type: ignore[misc]
        def create_builder_config(self) -> object:
            config = super().create_builder_config()
            config.num_compute_capabilities = 1
            config.set_compute_capability(rtx.ComputeCapability.SM86, 0)
            return config

    class Compiler:
        def __getattr__(self, name: str) -> object:
            return Builder if name == "Builder" else getattr(rtx, name)

    logger = rtx.Logger(rtx.Logger.INTERNAL_ERROR)
    plan = tensorrt.build(Compiler(), logger, made / "simplecnn-dynamo-exact-fp32.onnx", 4)
    assert len(plan) > 10_000
    text = tmp_path / "text.onnx"
    text.write_text("this is text")
    with pytest.raises(BackendError):
        tensorrt.build(Compiler(), logger, text, 4)


def test_engines_are_cached_in_a_private_folder_by_all_that_they_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime.backends.tensorrt import engine_path

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    paths = {engine_path(*key) for key in [("a", "10", "g", 1), ("b", "10", "g", 1), ("a", "11", "g", 1),
                                           ("a", "10", "h", 1), ("a", "10", "g", 2)]}  # fmt: skip
    assert len(paths) == 5
    if sys.platform == "linux":
        assert {path.parent.stat().st_mode & 0o777 for path in paths} == {0o700}


def test_a_failed_artifact_finds_its_reference_one_folder_up() -> None:
    assert home(Path("artifacts/m/failed/m.onnx")) == Path("artifacts/m") == home(Path("artifacts/m/m.onnx"))

"""Each option of an engine changes what it says, in the engine itself, and never its answers."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import runtime_artifacts
from checkpoints import random_checkpoint
from commands import succeed

from export.artifact import Found, open_file
from runtime import backends, engine_cache
from runtime.backend import BackendError, Session, Timed
from runtime.backends import aoti
from runtime.backends.openvino import OpenVinoSession
from runtime.check import Reference
from trainers.manifest import UserError

pytestmark = pytest.mark.slow
HAS_GPU = backends.gpu() is not None


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runtime_artifacts.make(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A step that takes long enough to be seen under way."""
    folder = tmp_path_factory.mktemp("resnet")
    random_checkpoint(folder, "resnet18", stem="cifar")
    succeed("export", "resnet18", "--verify-images", 16, "--artifacts", folder)
    return folder / "resnet18"


@pytest.fixture
def images(made: Path) -> np.ndarray:
    return Reference.load(made / "reference.safetensors").batch(4)


def file(made: Path, kind: str) -> Found:
    name = "torch-exact-fp32.safetensors" if kind == "torch" else f"dynamo-exact-{kind}.onnx"
    return open_file(made / f"simplecnn-{name}")


def load(name: str, found: Found, *, device: str = "cpu", threads: int = 1, batch: int = 4, **options: str) -> Session:
    backend = backends.get(name)
    if reason := backend.unusable(device):
        pytest.skip(reason)
    assert all(value in backend.options[key] for key, value in options.items())
    return backend.load(found, device=device, threads=threads, batch=batch, options=options)


def logits(session: Session, images: np.ndarray) -> np.ndarray:
    session.bind(images)
    session.step()
    session.sync()
    return session.fetch()


@pytest.mark.parametrize(("key", "value"), [("binding", "off"), ("spinning", "off")])
def test_onnxruntimes_options_leave_its_answers_alone(made: Path, images: np.ndarray, key: str, value: str) -> None:
    plain, other = (load("onnxruntime", file(made, "fp32"), **options) for options in ({}, {key: value}))
    assert (plain.attested[key], other.attested[key]) == ("on", value)
    assert np.array_equal(logits(plain, images), logits(other, images))


def test_onnxruntime_is_told_not_to_spin(made: Path) -> None:
    for value, entry in (("on", "1"), ("off", "0")):
        session = load("onnxruntime", file(made, "fp32"), spinning=value)
        settings = session._session.get_session_options()
        assert settings.get_session_config_entry("session.intra_op.allow_spinning") == entry


def test_onnxruntime_never_falls_back_in_silence(made: Path) -> None:
    if HAS_GPU:
        pytest.skip("there is a GPU to run on")
    backend, found = backends.get("onnxruntime"), file(made, "fp32")
    with pytest.raises(BackendError, match="fallback: asked for CUDAExecutionProvider, got CPUExecutionProvider"):
        backend.load(found, device="cuda", threads=1, batch=1, options={})


@pytest.mark.parametrize(("key", "value"), [("cudagraph", "on"), ("provider", "tensorrt")])
def test_what_needs_a_gpu_says_so(made: Path, key: str, value: str) -> None:
    with pytest.raises(BackendError, match=f"{key}={value} needs an NVIDIA GPU"):
        load("onnxruntime", file(made, "fp32"), **{key: value})


def test_openvino_keeps_fp32_unless_asked(made: Path) -> None:
    used = [load("openvino", file(made, "fp32"), **options).attested["precision"]
            for options in ({}, {"precision": "bf16"})]  # fmt: skip
    assert used == ["f32", "bf16"]


def in_flight(session: OpenVinoSession) -> int:
    """Requests that the engine itself says are not done."""
    return sum(not request.wait_for(0) for request in session._busy)


def test_openvino_has_a_request_in_flight_for_each_stream(resnet: Path) -> None:
    found = open_file(next(resnet.glob("*-fp32.onnx")))
    one, two = (load("openvino", found, threads=2, batch=8, streams=count) for count in ("1", "2"))
    images = Reference.load(resnet / "reference.safetensors").batch(8)
    assert np.allclose(logits(one, images), logits(two, images), atol=1e-4)
    assert (one.attested["requests"], two.attested["requests"]) == ("1", "2")
    assert max(step_twice(one) for _ in range(5)) == 0  # a lone request is run, not started
    assert max(step_twice(two) for _ in range(5)) == 2
    assert in_flight(two) == 0


def step_twice(session: OpenVinoSession) -> int:
    """Start two steps; how many are then under way at once?"""
    session.step()
    session.step()
    under_way = in_flight(session)
    session.sync()
    return under_way


def test_openvino_says_what_a_hint_made_of_it(made: Path, images: np.ndarray) -> None:
    sessions = [load("openvino", file(made, "fp32"), threads=2, hint=hint) for hint in ("latency", "throughput")]
    assert [session.attested["hint"] for session in sessions] == ["latency", "throughput"]
    assert sessions[0].attested["streams"] == "1"
    assert np.allclose(*(logits(session, images) for session in sessions), atol=1e-4)


def test_openvino_does_not_pretend_to_have_streams(made: Path) -> None:
    with pytest.raises(BackendError, match="fallback: asked for 4 streams, 1 threads make 1"):
        load("openvino", file(made, "fp32"), streams="4")


def test_openvino_finds_what_it_compiled(made: Path, images: np.ndarray) -> None:
    cold, warm = (load("openvino", file(made, "int8"), cache="on") for _ in range(2))
    assert (cold.attested["compiled"], warm.attested["compiled"]) == ("built", "cached")
    assert cold.build_s > warm.build_s == 0
    assert np.array_equal(logits(cold, images), logits(warm, images))
    assert "compiled" not in load("openvino", file(made, "int8")).attested


def test_compiled_tells_a_cold_cache_from_a_warm_one(made: Path, images: np.ndarray) -> None:
    want = logits(load("eager", file(made, "torch")), images)
    said = []
    loose = {"freezing": "off"}
    for options in (loose, loose, {"cache": "off", **loose}, {}):
        session = load("compiled", file(made, "torch"), **options)
        assert np.allclose(logits(session, images), want, atol=1e-4)
        said.append((session.attested["freezing"], session.attested["cache"]))
        session.close()
    assert said == [("off", "miss"), ("off", "hit"), ("off", "miss"), ("on", "bypassed")]
    assert any((engine_cache.folder("inductor")).iterdir())
    assert not any((engine_cache.folder("fresh")).iterdir())


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_compiled_in_other_modes(made: Path, images: np.ndarray, mode: str) -> None:
    session = load("compiled", file(made, "torch"), mode=mode)
    assert session.attested["mode"] == mode
    assert np.allclose(logits(session, images), logits(load("eager", file(made, "torch")), images), atol=1e-4)


def test_aoti_compiles_a_package_once(
    made: Path, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # others compile packages into the tests' own
    want = logits(load("eager", file(made, "torch")), images)
    cold, warm = (load("aoti", file(made, "torch")) for _ in range(2))
    assert (cold.attested["package"], warm.attested["package"]) == ("built", "cached")
    assert cold.build_s > warm.build_s == 0
    for session in (cold, warm):
        assert np.allclose(logits(session, images), want, atol=1e-4)
    loose = load("aoti", file(made, "torch"), freezing="off")
    assert (loose.attested["freezing"], loose.attested["package"]) == ("off", "built")
    assert np.allclose(logits(loose, images), want, atol=1e-4)
    packages = list(engine_cache.folder("aoti").iterdir())
    assert len(packages) == 2  # and nothing that building left
    assert not [path for path in packages[0].rglob("*") if path.is_file() and path.read_bytes()[:2] == b"\x80\x02"]


def test_a_package_is_of_all_that_an_artifact_computes(made: Path) -> None:
    """The same weights with another activation are another network."""
    record = file(made, "torch").record
    assert record
    tanh = msgspec.structs.replace(record, variant=msgspec.structs.replace(record.variant, gelu="tanh"))
    assert aoti._identity(record) != aoti._identity(tanh)
    foreign = msgspec.structs.replace(record, model="net.py:factory")
    with pytest.raises(UserError, match="which a record never runs"):
        aoti._identity(foreign)


def test_eager_runs_the_artifacts_own_gelu(tmp_path: Path) -> None:
    random_checkpoint(tmp_path, "convnext", size=32, blocks="1,1,1,1")
    succeed(
        "export", "convnext", "--exporter", "torch", "--gelu", "tanh", "--verify-images", 16, "--artifacts", tmp_path
    )
    exact, tanh = (
        open_file(tmp_path / "convnext" / f"convnext-torch-{name}-fp32.safetensors") for name in ("exact", "tanh")
    )
    images = Reference.load(tmp_path / "convnext" / "reference.safetensors").batch(4)
    base, other = (logits(load("eager", found), images) for found in (exact, tanh))
    assert 1e-7 < np.abs(base - other).max() < 0.05 * base.std()


@pytest.mark.parametrize("name", ["eager", "compiled"])
def test_only_a_gpu_has_a_time_of_its_own(made: Path, images: np.ndarray, name: str) -> None:
    session = load(name, file(made, "torch"))
    logits(session, images)
    assert isinstance(session, Timed)
    assert session.device_s() is None


def test_engines_are_cached_in_a_private_folder_by_all_that_they_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keys = [("a", "10", "g"), ("b", "10", "g"), ("a", "11", "g"), ("a", "10", "h"), ("a", "10")]
    paths = {engine_cache.path("tensorrt", ".engine", *key) for key in keys}
    assert len(paths) == 5
    if sys.platform == "linux":
        for path in paths:
            assert path.parent.stat().st_mode & 0o777 == path.parent.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can give a folder away")
def test_another_users_cache_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    os.chown(engine_cache.folder("tensorrt"), 12345, 12345)
    with pytest.raises(UserError, match="another user's"):
        engine_cache.folder("tensorrt")


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [("eager", "torch", {}), ("compiled", "torch", {}), ("compiled", "torch", {"mode": "reduce-overhead"}),
     ("aoti", "torch", {}), ("tensorrt", "fp32", {}), ("tensorrt", "fp32", {"profile": "dynamic"}),
     ("onnxruntime", "fp32", {"cudagraph": "on"}), ("onnxruntime", "fp32", {"binding": "off"}),
     ("onnxruntime", "fp32", {"provider": "tensorrt"})],
)  # fmt: skip
def test_on_the_gpu(made: Path, images: np.ndarray, name: str, kind: str, options: dict[str, str]) -> None:
    want = logits(load("eager", file(made, "torch")), images)
    session = load(name, file(made, kind), device="cuda", **options)
    for _ in range(3):  # the first steps of a CUDA graph capture it
        got = logits(session, images)
    assert np.allclose(got, want, atol=1e-3)
    if name != "onnxruntime":
        assert isinstance(session, Timed)
        device_s = session.device_s()
        assert device_s is not None
        assert 0 < device_s < 1
    session.close()

"""python -m runtime build: TensorRT engines for GPUs that are not here, by the real compiler."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import runtime_artifacts
from commands import expect_refusal, run, succeed

from runtime import trt
from runtime.backend import BackendError
from runtime.engine import Engine
from trainers.manifest import sha256

pytest.importorskip("tensorrt_rtx", reason="install the tensorrt-rtx extra to meet TensorRT's compiler")
pytestmark = pytest.mark.slow
FP32, INT8 = "simplecnn-dynamo-exact-fp32", "simplecnn-dynamo-exact-int8"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shared = runtime_artifacts.make(tmp_path_factory.getbasetemp())
    return Path(shutil.copytree(shared.parent, tmp_path_factory.mktemp("build") / "artifacts")) / shared.name


def build(made: Path, target: object, *arguments: object) -> tuple[int, dict[tuple[str, str], dict]]:
    """The exit status, and the document's rows by artifact and architecture."""
    done = run("runtime", "build", target, *arguments, "--json", "--artifacts", made.parent)
    rows = json.loads(done.stdout)["engines"]
    assert all(row["artifact"] in done.stderr for row in rows)
    return done.returncode, {(row["artifact"], row["architecture"]): row for row in rows}


def test_a_model_is_built_for_gpus_that_are_not_here(made: Path) -> None:
    status, rows = build(made, "simplecnn", "--arch", "sm86,SM120,sm90")
    assert status == 0
    assert {artifact for artifact, _ in rows} == {FP32, INT8}
    for architecture in ("sm86", "sm120"):
        row = rows[FP32, architecture]
        path = Path(row["path"])
        assert path == made / "engines" / f"{FP32}-{architecture}.engine"
        engine = Engine.load(path.with_suffix(".json"))
        assert engine.file.sha256 == row["sha256"] == sha256(path)
        assert engine.artifact_sha256 == sha256(made / f"{FP32}.onnx")
        assert (engine.architecture, engine.batch, engine.profile) == (architecture, 1, "static")
        assert engine.seconds > 0
        assert path.stat().st_size == row["bytes"] > 10_000
        # ONNX Runtime's int8 has zero points, which TensorRT does not take.
        assert (
            "its parser: INVALID_NODE DequantizeLinear" in rows["simplecnn-dynamo-exact-int8", architecture]["reason"]
        )
    assert "no target sm90; version" in rows[FP32, "sm90"]["reason"]
    assert run("export.check", made / "engines").returncode == 0


def test_what_is_built_is_not_built_again_unless_it_changed(made: Path) -> None:
    arguments = (made / f"{FP32}.onnx", "--arch", "sm89", "--batch", 8, "--profile", "dynamic")
    _, first = build(made, *arguments)
    path = Path(first[FP32, "sm89"]["path"])
    assert path.name == f"{FP32}-sm89-b8-dynamic.engine"
    written = path.stat().st_mtime_ns
    assert build(made, *arguments)[1] == first
    assert path.stat().st_mtime_ns == written
    path.write_bytes(b"damaged")
    build(made, *arguments)
    assert path.stat().st_size == first[FP32, "sm89"]["bytes"]


def test_nothing_built_is_a_failure(made: Path) -> None:
    done = run("runtime", "build", made / f"{FP32}.onnx", "--arch", "sm90", "--artifacts", made.parent)
    assert done.returncode == 1
    assert "no target sm90" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_file_of_the_users_own_gets_a_folder_of_its_name(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "foreign.onnx"
    path.write_bytes((made / f"{FP32}.onnx").read_bytes())
    succeed("runtime", "build", path, "--arch", "sm86", "--artifacts", tmp_path / "artifacts")
    assert (tmp_path / "artifacts" / "foreign" / "engines" / "foreign-sm86.engine").is_file()


def test_mistakes_are_one_line(made: Path) -> None:
    common = ("--artifacts", made.parent)
    expect_refusal("runtime", "build", "simplecnnn", "--arch", "sm86", *common, says="there are: simplecnn")
    torch = made / "simplecnn-torch-exact-fp32.safetensors"
    expect_refusal("runtime", "build", torch, "--arch", "sm86", *common, says="has no ONNX file")


def compiler_says(path: Path, **how: object) -> str:
    with pytest.raises(BackendError) as caught:
        trt.build(trt.load("rtx"), path, **{"batch": 2, "architecture": "sm86", **how})  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_compilers_reasons(made: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.onnx"
    text.write_text("this is text")
    assert "0 inputs" in compiler_says(text)
    assert "no target sm20" in compiler_says(made / f"{FP32}.onnx", architecture="sm20")
    succeed("export", "simplecnn", "--batch", 2, "--verify-images", 16, "--artifacts", made.parent)
    fixed = next(made.glob("*-b2.onnx"))
    assert "batch size is fixed at 2" in compiler_says(fixed, profile="dynamic")

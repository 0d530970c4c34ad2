"""python -m export.check: every way in which files and records can disagree."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import exported_artifacts
import msgspec
import onnx
import pytest
from commands import expect_refusal, run, succeed

from export.artifact import Artifact
from export.inspect.verify import Finding, Verifier, scope
from trainers.checkpoint import Checkpoint, keep
from trainers.manifest import File

FP32, INT8 = "simplecnn-dynamo-exact-fp32", "simplecnn-dynamo-exact-int8"


@pytest.fixture
def model(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """A model's folder of its own, under an artifacts folder."""
    made = exported_artifacts.make(tmp_path_factory.getbasetemp())
    return Path(shutil.copytree(made / "simplecnn", tmp_path / "artifacts" / "simplecnn"))


def findings(*paths: Path) -> dict[str, Finding]:
    """What is wrong, by file name."""
    verifier, checked = Verifier(), scope(paths)
    found = [finding for voucher in checked.vouchers for finding in verifier.findings(voucher)]
    found += checked.unrecorded({finding.path for finding in found})
    assert found
    return {finding.path.name: finding for finding in found if finding.status != "ok"}


def flip(path: Path, place: int = -100) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.unlink()  # it may be another file's second name
    path.write_bytes(content)


def test_what_the_stages_left_is_as_recorded(model: Path) -> None:
    done = succeed("export.check", "--artifacts", model.parent, "--strict", "--json")
    found = json.loads(done.stdout)
    assert found["failed"] == 0
    assert {Path(row["path"]).name: row["status"] for row in found["files"]} == dict.fromkeys(
        ("checkpoint.safetensors", f"{FP32}.onnx", f"{INT8}.onnx", "reference.safetensors",
         "simplecnn-torch-exact-fp32.safetensors"), "ok",
    )  # fmt: skip
    assert "OK: 5 ok" in done.stderr


@pytest.mark.parametrize("path", ["simplecnn", f"simplecnn/{INT8}.onnx"])
def test_one_flipped_bit_fails_and_is_named(model: Path, path: str) -> None:
    flip(model / f"{INT8}.onnx")
    done = run("export.check", model.parent / path)
    assert done.returncode == 1
    line = next(line for line in done.stdout.splitlines() if f"{INT8}.onnx: " in line)
    assert line.startswith("changed: ")
    assert "sha256" in line
    assert "FAILED: 1 of" in done.stdout


def test_a_cut_file_and_a_missing_one(model: Path) -> None:
    path = model / f"{FP32}.onnx"
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    (model / "reference.safetensors").unlink()
    found = findings(model)
    assert found[path.name].status == "changed"
    assert found[path.name].detail == f"{len(content) - 5} bytes, recorded {len(content)}"
    assert found["reference.safetensors"].status == "missing"
    assert found.keys() == {path.name, "reference.safetensors"}, "a damaged parent makes nothing else wrong"


def test_a_flipped_checkpoint_is_damage_and_not_another_checkpoint(model: Path) -> None:
    flip(model / "checkpoint.safetensors")
    assert {name: finding.status for name, finding in findings(model).items()} == {"checkpoint.safetensors": "changed"}


@pytest.mark.parametrize(
    "content", ["{", "[" * 100_000, '{"schema": 1, "variant": 2, "parity": 3}', '{"schema": 1, "files": 7}']
)
def test_a_record_that_cannot_be_read(model: Path, content: str) -> None:
    (model / f"{INT8}.json").write_text(content)
    found = findings(model)
    assert found[f"{INT8}.json"].status == "unreadable"
    assert found[f"{INT8}.onnx"].status == "no record"


def test_after_another_training_artifacts_are_stale(model: Path) -> None:
    old = Checkpoint.load(model / "checkpoint.json")
    keep(old, model / "checkpoint.safetensors", model)
    flip(model / "checkpoint.safetensors")
    file = File.of(model / "checkpoint.safetensors")
    msgspec.structs.replace(old, files=(file,)).save(model / "checkpoint.json")
    found = findings(model)
    assert {finding.status for finding in found.values()} == {"stale"}
    assert set(found) == {f"{FP32}.onnx", f"{INT8}.onnx", "simplecnn-torch-exact-fp32.safetensors"}
    assert f"kept as checkpoint-{old.weights.sha256[:8]}.safetensors" in found[f"{FP32}.onnx"].detail
    assert run("export.check", model).returncode == 0
    assert run("export.check", model, "--strict").returncode == 1


def test_a_parent_that_is_gone(model: Path) -> None:
    (model / f"{FP32}.onnx").unlink()
    (model / f"{FP32}.json").unlink()
    found = findings(model)
    assert found[f"{INT8}.onnx"].status == "stale"
    assert f"{FP32}.onnx, which it was made from, is gone" in found[f"{INT8}.onnx"].detail


def test_metadata_that_name_another_checkpoint(model: Path) -> None:
    """File and record agree, but the file says that it comes from elsewhere."""
    path = model / f"{FP32}.onnx"
    file = onnx.load(path)
    next(entry for entry in file.metadata_props if entry.key == "checkpoint_sha256").value = "0" * 64
    onnx.save(file, path)
    record = Artifact.load(path.with_suffix(".json"))
    msgspec.structs.replace(record, files=(File.of(path),)).save(path.with_suffix(".json"))
    found = findings(path)
    assert found[path.name].status == "changed"
    assert "by its metadata" in found[path.name].detail


def test_a_record_may_not_point_outside(model: Path) -> None:
    record = Artifact.load(model / f"{FP32}.json")
    elsewhere = msgspec.structs.replace(record.file, path="../../elsewhere.onnx")
    msgspec.structs.replace(record, files=(elsewhere,)).save(model / f"{FP32}.json")
    assert findings(model / f"{FP32}.json")["elsewhere.onnx"].detail == "the record names a file outside its folder"


def test_a_failed_artifact_finds_its_parents(model: Path) -> None:
    (model / "failed").mkdir()
    for suffix in (".onnx", ".json"):
        (model / f"{INT8}{suffix}").rename(model / "failed" / f"{INT8}{suffix}")
    assert findings(model) == {}


def test_files_that_any_record_describes_can_be_named(model: Path) -> None:
    assert findings(model / "reference.safetensors") == {}
    (model / "stray.onnx").write_bytes(b"0")
    assert findings(model)["stray.onnx"].status == "no record"
    expect_refusal("export.check", model / "stray.onnx", says="has no record")
    expect_refusal("export.check", model / "nowhere.onnx", says="no such file or folder")


def test_what_a_killed_export_left_is_mentioned_after_a_day(model: Path) -> None:
    for name, age in (("old", 2 * 86400), ("new", 60)):
        folder = model / f".export-{name}"
        folder.mkdir()
        (folder / "half.onnx").write_bytes(b"0")
        os.utime(folder, (time.time() - age, time.time() - age))
    assert [path.name for path in scope([model]).leftovers()] == [".export-old"]
    assert findings(model) == {}, "what is in them has no record yet"


def test_hashing_loads_no_framework(model: Path) -> None:
    import subprocess
    import sys

    program = (
        "import sys\nfrom pathlib import Path\nfrom export.inspect.verify import Verifier, voucher\n"
        f"made = voucher(Path({str(model / 'checkpoint.json')!r}))\n"
        "print([finding.status for finding in Verifier().findings(made)])\n"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["['ok']", "[]"]

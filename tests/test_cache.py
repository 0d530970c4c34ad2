"""python -m trainers.cache lists what lies in the cache and deletes only what this program wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import mnist_files, opened, write

from trainers import cache
from trainers.manifest import UserError


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    opened(write(tmp_path / "mnist", mnist_files()), tmp_path, (1, 28, 28))
    write(tmp_path / "cache", {"downloads/mnist/t10k-labels-idx1-ubyte.gz": b"12345"})
    return tmp_path / "cache"


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    capsys.readouterr()
    assert cache.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_list(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = {entry["name"]: entry for entry in document(capsys, "--cache", str(filled))["entries"]}
    assert listed["mnist"]["bytes"] == 5
    (pack,) = (entry for entry in listed.values() if entry["kind"] == "packs")
    assert pack["source"] == "mnist" and pack["splits"] == {"train": 30, "val": 10, "test": 10}
    assert pack["bytes"] > 50 * 28 * 28
    assert cache.main(["--cache", str(filled)]) == 0
    assert "train=30 val=10 test=10" in capsys.readouterr().out


def test_clear_one_then_all(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(document(capsys, "clear", "mnist-", "--cache", str(filled))["cleared"]) == 1
    assert not list(filled.glob("packs/*")) and list(filled.glob("downloads/*/*"))
    assert cache.main(["clear", "--cache", str(filled)]) == 0
    assert document(capsys, "--cache", str(filled))["entries"] == []


def test_clear_leaves_what_is_not_ours(filled: Path) -> None:
    (pack,) = (filled / "packs").iterdir()
    write(pack, {"thesis.txt": b"mine", ".train.npy.abc.npy": b"left by a killed run"})
    write(filled, {"photos/holiday.jpg": b"mine"})
    assert cache.main(["clear", "--cache", str(filled)]) == 0
    assert [file.name for file in filled.rglob("*") if file.is_file()] in (
        ["thesis.txt", "holiday.jpg"],
        ["holiday.jpg", "thesis.txt"],
    )


def test_an_unknown_entry(filled: Path) -> None:
    with pytest.raises(UserError, match="unknown cache entry"):
        cache.main(["clear", "cifar", "--cache", str(filled)])
    assert len(list(filled.glob("*/*/*"))) == 8

"""Records and files on disk: strict on reading, whole or absent after any failure."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import ClassVar

import pytest

from trainers import manifest
from trainers.manifest import File, Record, UserError, atomic, environment, write_atomic


class Note(Record, frozen=True, kw_only=True):
    text: str
    count: int = 0
    SCHEMA: ClassVar[int] = 2

    @classmethod
    def upgrade(cls, document: dict, schema: int) -> dict:
        return {"text": document["words"]} if schema == 1 else document


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    note = Note(text="ä", count=3)
    note.save(tmp_path / "note.json")
    assert Note.load(tmp_path / "note.json") == note


def test_an_older_schema_is_read(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('{"schema": 1, "words": "hello"}')
    assert Note.load(tmp_path / "old.json") == Note(text="hello")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"schema": 2, "text": "x"', "not a complete JSON document"),
        ("", "not a complete JSON document"),
        ("[1]", "no schema number"),
        ('{"text": "x"}', "no schema number"),
        ('{"schema": true, "text": "x"}', "no schema number"),
        ('{"schema": 3, "text": "x"}', "newer version"),
        ('{"schema": 2, "text": 5}', "Expected `str`, got `int`"),
        ('{"schema": 2, "text": "x", "count": "3"}', "Expected `int`, got `str`"),
        ('{"schema": 2}', "missing required field `text`"),
        ('{"schema": 2, "text": "x", "colour": 1}', "unknown field `colour`"),
    ],
)
def test_a_wrong_record_gets_its_own_line(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "note.json"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        Note.load(path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_record_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such note record"):
        Note.load(tmp_path / "none.json")


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"abc")
    file = File.of(path)
    assert file.verify(tmp_path) == path
    path.write_bytes(b"abd")
    with pytest.raises(UserError, match="sha256 differs"):
        file.verify(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="missing"):
        file.verify(tmp_path)


def test_a_record_cannot_name_a_file_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"abc")
    folder = tmp_path / "model"
    folder.mkdir()
    outside = File(path="../secret", sha256=manifest.sha256(tmp_path / "secret"), bytes=3)
    with pytest.raises(UserError, match="outside its folder"):
        outside.verify(folder)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with pytest.raises(KeyboardInterrupt), atomic(path) as temporary:
        temporary.write_bytes(b"ne")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_environment_is_described_without_frameworks() -> None:
    here = environment()
    assert here.cores >= here.threads >= 1
    assert "torch" in here.packages
    json.dumps(manifest.msgspec.to_builtins(here))

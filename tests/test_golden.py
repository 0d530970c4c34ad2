"""Records of every schema that was ever written are still read."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.artifact import Artifact
from runtime.report import table
from runtime.results import Report
from runtime.roofline import Roofline
from runtime.tuning.best import Best
from trainers.checkpoint import Checkpoint
from trainers.manifest import Record
from trainers.measure import tables
from trainers.measure.results import Experiments, Ladder, Sweep

GOLDEN = Path(__file__).parent / "golden"
NOUNS: dict[str, type[Record]] = {
    "checkpoint": Checkpoint, "artifact": Artifact, "report": Report, "ladder": Ladder, "sweep": Sweep,
    "experiments": Experiments, "roofline": Roofline, "best": Best,
}  # fmt: skip


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_an_old_record_is_read(path: Path) -> None:
    noun, _, schema = path.stem.partition("-")
    record = NOUNS[noun].load(path)
    assert int(schema) <= type(record).SCHEMA
    assert record.environment.packages["torch"] == "2.15.0"  # type: ignore[attr-defined]


def test_there_is_one_of_each_schema() -> None:
    names = {path.stem for path in GOLDEN.glob("*.json")}
    assert names == {f"{noun}-{n}" for noun, kind in NOUNS.items() for n in range(1, kind.SCHEMA + 1)}


def test_an_old_report_is_still_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    table.show(Report.load(GOLDEN / "report-1.json"))
    shown = capsys.readouterr().out
    assert "times faster than eager fp32" in shown
    assert " dynamo-exact-int8 " in shown


def test_old_measurements_of_training_are_still_tables() -> None:
    ladder = Ladder.load(GOLDEN / "ladder-1.json")
    assert next(row[5] for row in tables.ladder_rows(ladder)) == "1.00"
    assert ladder.best is not None
    assert ladder.best.name == "all-threads"
    assert [row[-1] for row in tables.sweep_rows(Sweep.load(GOLDEN / "sweep-1.json"))][1] == "sweet spot"
    assert len(tables.experiment_rows(Experiments.load(GOLDEN / "experiments-1.json"))) == 7

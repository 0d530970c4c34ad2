"""Entry: an artifact as the index lists it, with what the newest report that measured it says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from export.artifact import Found, find, open_file
from runtime import saved, targets
from runtime.check import home
from runtime.report import table
from runtime.report.table import milliseconds
from runtime.results import Measurement, Report
from runtime.verdict import judge
from trainers.cli import megabytes
from trainers.manifest import UserError

NONE = "-"


@dataclass(frozen=True)
class Entry:
    """Texts are for people; `files` are all that belong to the artifact, the one that is opened first."""

    model: str
    found: Found
    files: tuple[Path, ...]
    size: str
    drop: str
    engine: str
    time: str
    faster: str
    word: str

    @property
    def name(self) -> str:
        return self.found.name

    @property
    def has_heat(self) -> bool:
        return self.found.kind == "onnx"


def entries(names: Sequence[str], artifacts: Path) -> list[Entry]:
    """The artifacts of the models and files named, or of all models. Raises UserError where there is nothing."""
    reports = [report for path in saved.newest_first(artifacts / saved.FOLDER) if (report := _read(path))]
    listed = [
        _entry(found, reports) for name in names or targets.models(artifacts) for found in _found(name, artifacts)
    ]
    if not listed:
        raise UserError(f"no artifact in {artifacts}; make one with: python -m export MODEL")
    return listed


def _read(path: Path) -> Report | None:
    try:
        return Report.load(path)
    except UserError:  # of a newer version, or damaged: the others still say something
        return None


def _found(name: str, artifacts: Path) -> Iterator[Found]:
    folder = targets.model_folder(name, artifacts)
    if folder is not None:
        yield from (one for one in find(folder) if not one.stale)
    elif Path(name).is_file():
        yield open_file(Path(name))
    elif Path(name).suffix:
        raise UserError(f"{name}: no such file; list what there is with: ls {Path(name).parent}")
    else:
        there = ", ".join(targets.models(artifacts))
        raise UserError(f"no model or file {name!r} in {artifacts}; " + (f"there are the models {there}" if there else
                        "make one with: python -m export MODEL"))  # fmt: skip


def _entry(found: Found, reports: Sequence[Report]) -> Entry:
    record = found.record
    files = tuple(found.path.parent / file.path for file in record.files) if record else (found.path,)
    report, row = _measured(found, reports)
    verdict = judge(report, row) if report and row else None
    ratio = report.speedup(row) if report and row else None
    return Entry(
        model=home(found.path).name if record else NONE, found=found, files=files,
        size=megabytes(sum(path.stat().st_size for path in files if path.is_file())),
        drop=NONE if record is None or record.parity.drop is None else f"{record.parity.drop:+.2f}",
        engine=row.cell.engine if row else NONE, time=milliseconds(row.median.value) if row else NONE,
        faster=table.times(ratio), word=verdict.word if verdict else NONE,
    )  # fmt: skip


def _measured(found: Found, reports: Sequence[Report]) -> tuple[Report | None, Measurement | None]:
    """The newest report of this very file, and its fastest verified row there."""
    sha256 = found.record.file.sha256 if found.record else ""
    for report in reports:
        names = {subject.name for subject in report.subjects if subject.sha256 == sha256}
        rows = [row for row in report.measurements
                if row.cell.artifact in names and not row.cell.twin and report.verified(row)]  # fmt: skip
        if rows:
            return report, min(rows, key=lambda row: row.median.value)
    return None, None

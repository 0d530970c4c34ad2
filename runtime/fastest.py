"""What the newest report of this machine found fastest, as far as the files are still what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from export.artifact import Artifact
from runtime import saved
from runtime.identity import identity
from runtime.results import Measurement, Report
from trainers.manifest import environment

REGIMES = ("end-to-end", "device", "throughput")  # whose times decide: the one most like a call, where it was measured


def newest(artifacts: Path, model: str, device: str) -> Report | None:
    """The newest report of this machine and device that has rows of the model."""
    here = identity(environment())
    for path in saved.newest_first(artifacts / saved.FOLDER):
        report = Report.find(path)
        if report and report.device == device and identity(report.environment) == here and any(report.of(model)):
            return report
    return None


def rows(report: Report, home: Path, batch: int, max_drop: float) -> Iterator[tuple[Measurement, Path]]:
    """A model's verified rows within `max_drop` points of top-1 and their files in its folder `home`, fastest first.

    With any number of threads, by the regime most like a call; rows whose file has changed since are left out.
    """
    model = home.resolve().name
    conditions = [one for one in report.conditions(model) if one.batch == batch]
    found = [row for one in conditions for row in report.fastest(model, one, max_drop)]
    for row in sorted(found, key=lambda row: (REGIMES.index(row.cell.regime), row.median.value)):
        if (path := _measured(report, row, home)) is not None:
            yield row, path


def _measured(report: Report, row: Measurement, home: Path) -> Path | None:
    """The row's file, wherever the report was made from; None when its record is not that of the file measured."""
    subject = report.subject(row)
    path = home / Path(subject.path).name
    record = Artifact.find(path.with_suffix(".json"))
    return path if record is not None and record.file.sha256 == subject.sha256 else None

"""Latencies from the newest report of `python -m runtime bench`. Only what is needed here is read of it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path

import msgspec

FOLDER = "reports"
BATCH = 1


class _Subject(msgspec.Struct):
    name: str
    sha256: str


class _Cell(msgspec.Struct):
    artifact: str
    backend: str
    batch: int
    options: dict[str, str] = {}
    regime: str = "device"
    twin: bool = False  # the same once more, for the noise

    @property
    def is_plain(self) -> bool:
        return self.batch == BATCH and not self.options and self.regime == "device" and not self.twin


class _Measurement(msgspec.Struct):
    cell: _Cell
    rounds_s: list[list[float]] = []
    error: str | None = None


class _Report(msgspec.Struct):
    subjects: list[_Subject]
    measurements: list[_Measurement]


def read(artifacts: Path, wanted: Mapping[str, str]) -> tuple[str | None, dict[str, dict[str, float]]]:
    """Median milliseconds at batch 1 by artifact and engine, and the report they are from.

    `wanted` holds the sha256 of each artifact's file by its name. All figures are from one report, the newest that
    measured any of these files: times of different runs are not to be compared. (None, {}) where there is none.
    """
    for path in sorted((artifacts / FOLDER).glob("[0-9]*.json"), reverse=True):
        try:
            report = msgspec.json.decode(path.read_bytes(), type=_Report)
        except (msgspec.DecodeError, msgspec.ValidationError, OSError):
            continue
        if found := _of(report, wanted):
            return path.name, found
    return None, {}


def _of(report: _Report, wanted: Mapping[str, str]) -> dict[str, dict[str, float]]:
    same = {subject.name for subject in report.subjects if wanted.get(subject.name) == subject.sha256}
    found: dict[str, dict[str, float]] = {}
    for row in report.measurements:
        cell = row.cell
        if cell.artifact in same and cell.is_plain and not row.error and row.rounds_s:
            samples = [sample for turn in row.rounds_s for sample in turn]
            found.setdefault(cell.artifact, {})[cell.backend] = 1e3 * statistics.median(samples)
    return found

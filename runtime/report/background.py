"""What stands behind a report's rows: sections for its page, read from the files and records that lie beside them.

A report that was carried to another machine has none: its artifacts are not there.
"""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from export.artifact import Artifact, is_true
from export.costs import Costs, profiles
from runtime import roofline
from runtime.check import home
from runtime.compare import Comparison
from runtime.report import comparison, plots
from runtime.report.profile import NAME
from runtime.results import Measurement, Report, Subject
from runtime.roofline import Roofline
from trainers.checkpoint import NAME as CHECKPOINT
from trainers.checkpoint import Checkpoint
from trainers.manifest import UserError

if TYPE_CHECKING:
    from trainers.measure.results import Ladder, Result, Sweep

LAYERS = 15  # of a profile, the longest
PROFILES = 3  # of a model, the newest
BYTES = {"kB": 1e3, "MB": 1e6, "GB": 1e9}  # as `trainers.cli.megabytes` writes them

Measured = TypeVar("Measured", "Ladder", "Sweep")
Cell = tuple[str, float | None, float | None]  # its text, what it is sorted by, and its bar's length from 0 to 1


@dataclass(frozen=True)
class Section:
    """A table with bars, below a roofline where it is of layers. A column marked with `>` holds numbers."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: list[list[Cell]]
    roof: plots.Roof | None = None


def sections(report: Report, model: str) -> list[Section]:
    """All that is known of a model."""
    known = Known(report, model)
    return [
        *_accuracy(known),
        *_exporters(known),
        *_operators(known),
        *_profiles(known),
        *_changes(known),
        *_ladder(known),
        *_sweep(known),
    ]


def commands(report: Report) -> list[str]:
    """What leads to the report again, as far as that is written down: trainings and measurements of training, exports,
    and the run itself."""
    from trainers.measure.results import Ladder, Sweep

    found = []
    for known in (Known(report, model) for model in report.models()):
        found += [known.checkpoint.command] if known.checkpoint else []
        measured = (*_newest(known, "ladder", Ladder), *_newest(known, "sweep", Sweep))
        found += [f"python {one.command}" for one in measured]
        found += [record.command for record in known.records.values()]
    return [command for command in dict.fromkeys([*found, f"python {report.command}"]) if command]


def changes(found: Comparison, old: str) -> Section:
    """What became of each row since another report."""
    columns = tuple(comparison.COLUMNS)
    rows = [_texts(comparison.cells(change), columns) for change in found.changes]
    note = "; ".join([comparison.summary(found), *found.warnings])
    return Section(f"What changed since {old}", note, ("model", *columns), [
        [(change.model, None, None), *row] for change, row in zip(found.changes, rows, strict=True)
    ])  # fmt: skip


class Known:
    """A model's artifacts that are still on disk as they were measured."""

    def __init__(self, report: Report, model: str) -> None:
        self.report, self.model = report, model
        self.subjects = [subject for subject in report.subjects if subject.model == model and subject.variant]

    @cached_property
    def records(self) -> dict[str, Artifact]:
        """By subject, in the report's order."""
        found = {one.name: _record(one) for one in self.subjects}
        return {name: record for name, record in found.items() if record is not None}

    @cached_property
    def folder(self) -> Path | None:
        return next((home(Path(one.path)) for one in self.subjects if one.name in self.records), None)

    @cached_property
    def checkpoint(self) -> Checkpoint | None:
        """The one that the artifacts were made from, where it is still the model's own."""
        path = self.folder / f"{CHECKPOINT}.json" if self.folder else None
        found = Checkpoint.find(path) if path else None
        parents = {parent.sha256 for record in self.records.values() for parent in record.parents}
        return found if found is not None and found.weights.sha256 in parents else None

    def path(self, record: Artifact) -> Path:
        """Its file, where that is what the record says."""
        return next(Path(one.path) for one in self.subjects if one.sha256 == record.file.sha256)

    @cached_property
    def graphs(self) -> list[Path]:
        """ONNX files whose bytes are those that were measured, the fastest first."""
        rows = sorted((row for row in self.report.of(self.model) if self.report.verified(row)), key=_seconds)
        named = [record for row in rows if (record := self.records.get(row.cell.artifact)) and record.kind == "onnx"]
        paths = [self.path(record) for record in named if is_true(self.path(record), record.file)]
        return list(dict.fromkeys(paths))

    @cached_property
    def plain(self) -> Path | None:
        """The fp32 file as it was exported."""
        fp32 = [one for one in self.subjects if one.is_exact_fp32 and one.variant and not one.variant.rewrites]
        return next((path for path in self.graphs if str(path) in {one.path for one in fp32}), None)


def _seconds(row: Measurement) -> float:
    return row.median.value


def _record(subject: Subject) -> Artifact | None:
    """Its record, where that is there, whole, and of the file that was measured."""
    record = None
    with contextlib.suppress(UserError):
        record = Artifact.find(Path(subject.path).with_suffix(".json"))
    return record if record is not None and record.file.sha256 == subject.sha256 else None


def _accuracy(known: Known) -> Iterator[Section]:
    """Each artifact against the checkpoint on the same images, and what it was calibrated on."""
    from export import tables

    records = list(known.records.values())
    if not records:
        return
    columns = (*tables.COLUMNS[:1], "calibrated on", *tables.COLUMNS[1:])
    rows = [
        _texts([name, _calibrated(record), *rest], columns)
        for record, (name, *rest) in zip(records, tables.rows(records), strict=True)
    ]
    yield Section("Accuracy and parity", tables.title(records), columns, rows)


def _calibrated(record: Artifact) -> str:
    how = record.variant.calibration
    return f"{how.images} images of {how.source}, {how.method}" if how else ""


def _exporters(known: Known) -> Iterator[Section]:
    from export import choice

    made = next((record.choice for record in known.records.values() if record.choice), None)
    if made is not None:
        title, columns, rows = choice.as_table(made)
        yield Section("Exporters compared", title, columns, [_texts(row, columns) for row in rows])


def _operators(known: Known) -> Iterator[Section]:
    """What the fastest ONNX file computes, by operator."""
    from export.inspect.charts import heading, measures
    from export.inspect.inventory import take

    if not known.graphs:
        return
    inventory = take(known.graphs[0], None)
    columns = measures(inventory)
    rows: list[list[Cell]] = [
        [(row.operator, None, None), (row.precision, None, None), (str(row.nodes), row.nodes, None)]
        + [(one.text(value := one.value(row)), value or 0.0, (value or 0.0) / (one.whole or 1.0)) for one in columns]
        for row in inventory.by_operator
    ]
    names = ("operator", "precision", "nodes>", *(f"{one.title}>" for one in columns))
    yield Section(
        "Operators of the fastest ONNX file", "; ".join([heading(inventory), *inventory.notes()]), names, rows
    )


def _profiles(known: Known) -> Iterator[Section]:
    """The longest layers of the newest profiles, beside what this machine could do at best."""
    if known.folder is None:
        return
    hashes = {record.file.sha256: name for name, record in known.records.items()}
    for path, costs in profiles(known.folder, hashes)[:PROFILES]:
        if (table := path.with_suffix(".csv")).is_file():
            roof = roofline.find(known.folder.parent, costs.environment) if costs.device == "cpu" else None
            yield _profile(hashes[costs.sha256], costs, table, roof)


def _profile(name: str, costs: Costs, table: Path, roof: Roofline | None) -> Section:
    with table.open(newline="") as file:
        lines = list(csv.DictReader(file))
    lines.sort(key=lambda line: -float(line["seconds"]))
    whole = sum(float(line["seconds"]) for line in lines) or 1.0
    rows: list[list[Cell]] = []
    for line in lines[:LAYERS]:
        seconds, reached = float(line["seconds"]), float(line["of_roof"]) if line["of_roof"] else None
        rows.append([
            (line["layer"] if len(line["layer"]) <= NAME else f"{line['layer'][: NAME - 1]}…", None, None),
            (line["operator"], None, None), (line["precision"], None, None),
            (f"{1e3 * seconds:.3g}", seconds, seconds / whole), (f"{seconds / whole:.1%}", seconds, None),
            ("-" if reached is None else f"{reached:.0%}", reached or 0.0, min(reached or 0.0, 1.0)),
        ])  # fmt: skip
    threads = f"{costs.threads} thread{'s' * (costs.threads > 1)}"
    note = (f"{name} in {costs.engine} on {costs.device}, {threads}, batch {costs.batch}: {1e3 * whole:.3g} ms in "
            f"{len(lines)} layers, of which the longest {len(rows)}; of roof: 100% is as fast as this machine's "
            "arithmetic and memory allow")  # fmt: skip
    columns = ("layer", "operator", "precision", "ms>", "share>", "of roof>")
    works = [plots.Work(line["layer"], line["precision"], *(float(line[column] or 0) for column in
             ("seconds", "flops", "bytes"))) for line in lines]  # fmt: skip
    return Section(f"Layers of {name} in {costs.engine}", note, columns, rows,
                   plots.roof(works, roof, costs.threads) if roof else None)  # fmt: skip


def _changes(known: Known) -> Iterator[Section]:
    """From the fp32 file to the fastest one."""
    from export.inspect.graphdiff import compare

    if known.plain is None or known.graphs[0] == known.plain:
        return
    found = compare(known.plain, known.graphs[0])
    rows = [*found.summary(), *((status, f"{count} {operator}") for (status, operator), count in
            found.counts().most_common() if status != "same")]  # fmt: skip
    command = f"python -m export.diff {known.plain.stem} {known.graphs[0].stem} --html FILE"
    yield Section("From the fp32 file to the fastest ONNX file", f"Operation by operator: {command}",
                  ("subject", "what changed"), [_texts(row, ("", "")) for row in rows])  # fmt: skip


def _ladder(known: Known) -> Iterator[Section]:
    """The newest measurement of ways to train this model."""
    from trainers.measure import tables
    from trainers.measure.results import Ladder

    for ladder in _newest(known, "ladder", Ladder):
        rows = _paced(ladder.results, tables.ladder_rows(ladder), tables.LADDER, place=2)
        yield _rounds("the optimisation ladder", ladder, tables.LADDER, rows)


def _sweep(known: Known) -> Iterator[Section]:
    """The newest measurement of training batch sizes."""
    from trainers.measure import tables
    from trainers.measure.results import Sweep

    for sweep in _newest(known, "sweep", Sweep):
        rows = _paced(sweep.results, tables.sweep_rows(sweep), tables.SWEEP, place=1)
        yield _rounds("batch sizes", sweep, tables.SWEEP, rows)


def _newest(known: Known, folder: str, record: type[Measured]) -> list[Measured]:
    """The newest of the records that a measurement of training left in its folder, if there is one."""
    paths = sorted((known.folder / folder).glob("*.json")) if known.folder else []
    return [record.load(path) for path in paths[-1:]]


def _rounds(what: str, measured: Ladder | Sweep, columns: Sequence[str], rows: list[list[Cell]]) -> Section:
    note = f"{measured.model} on {measured.data.name}, {measured.device}, {measured.rounds} interleaved rounds"
    return Section(f"Training: {what}", note, tuple(columns), rows)


def _paced(
    results: Sequence[Result], lines: Sequence[Sequence[str]], columns: Sequence[str], *, place: int
) -> list[list[Cell]]:
    """Rows of measured trainings, with a bar in the place of their images a second."""
    most = max((result.pace.value for result in results if result.pace), default=1.0)
    rows = [_texts(line, columns) for line in lines]
    for row, result in zip(rows, results, strict=True):
        pace = result.pace.value if result.pace and result.valid else 0.0
        row[place] = (row[place][0], pace, pace / most)
    return rows


def _texts(cells: Sequence[str], columns: Sequence[str]) -> list[Cell]:
    """Cells without bars; those of numbers are sorted by the number that their text begins with."""
    return [(text, _number(text) if ">" in column else None, None) for text, column in zip(cells, columns, strict=True)]


def _number(text: str) -> float:
    try:
        number, *unit = text.replace(",", "").split()
        return float(number.rstrip("%")) * (BYTES.get(unit[0], 1.0) if unit else 1.0)
    except ValueError:
        return -1.0

"""A Report as TensorBoard runs: one a row, whose choices and results its HPARAMS tab lays side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runtime.results import Measurement, Report
from runtime.verdict import judge
from trainers.measure.board import clear


def write(report: Report, folder: Path) -> None:
    """`folder`/<model>/bench/<artifact in engine>, each with what it is and what it took; older ones are replaced."""
    from torch.utils.tensorboard import SummaryWriter, summary

    add: Any = SummaryWriter.add_scalar
    for model in report.models():
        for row in report.of(model):
            base = report.baseline(row)
            if not row.valid or (row.heat and base is row):  # a baseline takes part in every heat
                continue
            place = folder / model / "bench" / _name(report, row).replace("/", "-")
            clear(place)
            with SummaryWriter(str(place)) as writer:
                results = _results(report, row)
                for part in summary.hparams(_choices(report, row), results):  # as add_hparams, but in one file
                    writer.file_writer.add_summary(part)
                for name, value in results.items():
                    add(writer, name, value)


def _name(report: Report, row: Measurement) -> str:
    """The artifact in its engine, and the conditions as far as they vary."""
    cell, plan = row.cell, report.plan
    parts = [cell.artifact, cell.engine, f"b{cell.batch}"]
    parts += [f"t{cell.threads}"] if len(plan.threads) > 1 else []
    parts += [cell.regime] if len(plan.regimes) > 1 else []
    return " ".join(parts)


def _choices(report: Report, row: Measurement) -> dict[str, Any]:
    subject, cell, verdict = report.subject(row), row.cell, judge(report, row)
    variant = subject.variant
    return {
        "engine": cell.engine, "batch": cell.batch, "threads": cell.threads, "regime": cell.regime,
        "exporter": variant.exporter if variant else "", "precision": variant.precision if variant else "",
        "gelu": variant.gelu if variant else "", "target": (variant.target if variant else None) or "",
        "verdict": verdict.word if verdict else "",
    }  # fmt: skip


def _results(report: Report, row: Measurement) -> dict[str, float]:
    subject, ratio, drop = report.subject(row), report.speedup(row), report.drop(row)
    found = {
        "milliseconds": 1e3 * row.median.value, "times faster": ratio.value if ratio else None, "top-1 drop": drop,
        "megabytes": subject.bytes / 1e6, "memory, MB": row.peak_bytes / 1e6 if row.peak_bytes else None,
    }  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}

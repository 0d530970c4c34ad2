"""A Report as comma-separated values: one line a measurement, seconds and bytes, empty where nothing is known."""

from __future__ import annotations

import csv
import io

from runtime.report.table import trust
from runtime.results import Measurement, Report
from runtime.verdict import judge

COLUMNS = (
    "model", "variant", "backend", "device", "threads", "batch", "regime", "twin", "heat", "samples", "p50_s",
    "p50_low_s", "p50_high_s", "p90_s", "p95_s", "p99_s", "speedup", "speedup_low", "speedup_high", "floor", "drop",
    "bytes", "build_s", "load_s", "first_s", "peak_bytes", "joules", "outputs", "verdict", "why", "disturbed", "error",
)  # fmt: skip


def render(report: Report) -> str:
    """The whole report, with a header line."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in report.measurements:
        writer.writerow(_line(report, row))
    return text.getvalue()


def _line(report: Report, row: Measurement) -> dict[str, object]:
    subject, cell = report.subject(row), row.cell
    line: dict[str, object] = {
        "model": subject.model, "variant": subject.name, "backend": cell.engine, "device": cell.device,
        "threads": cell.threads, "batch": cell.batch,
        "regime": cell.regime, "twin": cell.twin, "heat": row.heat, "drop": subject.drop, "bytes": subject.bytes,
        "build_s": row.build_s, "load_s": row.load_s, "first_s": row.first_s, "peak_bytes": row.peak_bytes,
        "joules": row.joules, "disturbed": "; ".join(report.disturbances), "error": row.error,
    }  # fmt: skip
    return line | _times(report, row) if row.valid else line


def _times(report: Report, row: Measurement) -> dict[str, object]:
    ratio, median, verdict = report.speedup(row), row.median, judge(report, row)
    return {
        "samples": row.samples, "p50_s": median.value, "p50_low_s": median.low,
        "p50_high_s": median.high, "p90_s": row.percentile(0.9),
        "p95_s": row.percentile(0.95), "p99_s": row.percentile(0.99),
        "speedup": ratio and ratio.value, "speedup_low": ratio and ratio.low, "speedup_high": ratio and ratio.high,
        "floor": report.floor(row), "outputs": trust(report, row),
        "verdict": verdict and verdict.word, "why": verdict and verdict.why,
    }  # fmt: skip

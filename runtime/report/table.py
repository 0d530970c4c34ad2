"""A Report as tables in the terminal: what was measured, what was not and why."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.results import Measurement, Report
from trainers.cli import megabytes, table

COLUMNS = ("backend", "variant", "batch>", "p50 ms>", "p90 ms>", "times faster>", "95% interval>", "top-1 drop>",
           "size>", "build s>", "outputs")  # fmt: skip
UNKNOWN = "-"


def show(report: Report, *, stderr: bool = False) -> None:
    """Print one table a model, and one of everything that has no number."""
    for model in report.models():
        rows = [row for row in report.of(model) if row.valid]
        if rows:
            table(title(report, model), COLUMNS, [cells(report, row) for row in ordered(rows)], stderr=stderr)
    reasons = failures(report)
    if reasons:
        table("Not measured", ("backend", "variant", "batch>", "reason"), reasons, stderr=stderr)


def title(report: Report, model: str) -> str:
    """Model, device, threads, and what the ratios are to."""
    threads = f"{report.threads} thread{'s' if report.threads > 1 else ''}"
    return f"{model} on {report.device}, {threads}; times faster than {baseline(report, model)}"


def baseline(report: Report, model: str) -> str:
    """What the ratios of a model's rows are to."""
    batches = {row.cell.batch for row in report.of(model)}
    bases = [base for batch in sorted(batches) if (base := report.baseline(model, batch))]
    if not bases:
        return "nothing: neither eager fp32 nor ONNX Runtime fp32 was measured"
    used = dict.fromkeys(base.cell.backend for base in bases)
    return " or ".join("eager fp32" if name == "eager" else "ONNX Runtime fp32 (no eager row)" for name in used)


def ordered(rows: Sequence[Measurement]) -> list[Measurement]:
    """By batch, then by median time."""
    return sorted(rows, key=lambda row: (row.cell.batch, row.median.value))


def cells(report: Report, row: Measurement) -> list[str]:
    """One row's cells, in the order of COLUMNS."""
    subject, ratio = report.subject(row), report.speedup(row)
    return [
        row.cell.engine, subject.name, str(row.cell.batch),
        milliseconds(row.median.value), milliseconds(row.percentile(0.9)),
        f"{ratio.value:.2f}" if ratio else UNKNOWN,
        f"{ratio.low:.2f} to {ratio.high:.2f}" if ratio else UNKNOWN,
        points(subject.drop), megabytes(subject.bytes),
        f"{row.build_s:.1f}" if row.build_s else UNKNOWN,
        trust(report, row),
    ]  # fmt: skip


def trust(report: Report, row: Measurement) -> str:
    """What is known about the row's outputs."""
    if row.check is None:
        return "none"
    return "verified" if report.verified(row) else "unverified"


def failures(report: Report) -> list[list[str]]:
    """Rows without a number, then engines that cannot run here."""
    failed = [row for row in report.measurements if not row.valid]
    rows = [[row.cell.engine, row.cell.artifact, str(row.cell.batch), row.error or "no samples"] for row in failed]
    rows += [[name, UNKNOWN, UNKNOWN, reason] for name, reason in report.unavailable.items()]
    return rows + [[UNKNOWN, name, UNKNOWN, "stale: made from an older checkpoint"] for name in report.stale]


def milliseconds(seconds: float | None) -> str:
    """Three significant digits, or a dash where there were too few samples."""
    if seconds is None:
        return UNKNOWN
    value = 1e3 * seconds
    return f"{value:.4f}" if value < 0.1 else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def points(drop: float | None) -> str:
    """An accuracy drop in percentage points; negative is a gain."""
    return UNKNOWN if drop is None else f"{drop + 0.0:.2f}"

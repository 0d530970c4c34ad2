"""A Report as tables in the terminal: what was measured, what was not and why."""

from __future__ import annotations

import math
from collections.abc import Sequence

from runtime.results import Measurement, Report
from trainers.cli import console, megabytes, table

COLUMNS = ("backend", "variant", "batch>", "p50 ms>", "p90 ms>", "times faster>", "95% interval>", "top-1 drop>",
           "size>", "build s>", "outputs")  # fmt: skip
UNKNOWN = "-"


def show(report: Report, *, stderr: bool = False) -> None:
    """Print one table a model, and one of everything that has no number."""
    for model in report.models():
        rows = [row for row in report.of(model) if row.valid]
        if rows:
            table(title(report, model), COLUMNS, [cells(report, row) for row in ordered(rows)], stderr=stderr)
    shown = console(stderr=stderr)
    for line in failures(report):
        shown.print(line, markup=False)


def title(report: Report, model: str) -> str:
    """Model, device, threads, and what the ratios are to."""
    threads = f"{report.threads} thread{'s' if report.threads > 1 else ''}"
    busy = f"; DISTURBED: others used {report.other_load:.1f} cores" if report.is_disturbed else ""
    return f"{model} on {report.device}, {threads}; {baseline(report, model)}{busy}"


def baseline(report: Report, model: str) -> str:
    """What the ratios of a model's rows are to."""
    batches = {row.cell.batch for row in report.of(model)}
    bases = [base for batch in sorted(batches) if (base := report.baseline(model, batch))]
    if not bases:
        return "no ratios: neither eager fp32 nor ONNX Runtime fp32 was measured"
    used = dict.fromkeys(base.cell.backend for base in bases)
    names = ("eager fp32" if name == "eager" else "ONNX Runtime fp32 (no eager row)" for name in used)
    return f"times faster than {' or '.join(names)}"


def ordered(rows: Sequence[Measurement]) -> list[Measurement]:
    """By batch, then by median time."""
    return sorted(rows, key=lambda row: (row.cell.batch, row.median.value))


def cells(report: Report, row: Measurement) -> list[str]:
    """One row's cells, in the order of COLUMNS."""
    subject, ratio = report.subject(row), report.speedup(row)
    return [
        row.cell.engine, subject.name, str(row.cell.batch),
        milliseconds(row.median.value), milliseconds(row.percentile(0.9)),
        UNKNOWN if not ratio else "noisy" if ratio.is_vague else f"{ratio.value:.2f}",
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


def failures(report: Report) -> list[str]:
    """One line each: rows without a number, engines that cannot run here, artifacts left out."""
    failed = [row for row in report.measurements if not row.valid]
    lines = [f"{row.cell.engine}, {row.cell.artifact}, batch {row.cell.batch}: {row.error}" for row in failed]
    measured = {row.cell.artifact for row in report.measurements}
    lines += [f"{subject.name}: no chosen engine that runs here loads it" for subject in report.subjects
              if subject.name not in measured]  # fmt: skip
    lines += [f"{name}: {reason}" for name, reason in report.unavailable.items()]
    lines += [f"{name}: stale, made from an older checkpoint" for name in report.stale]
    return [f"not measured: {line}" for line in lines]


def milliseconds(seconds: float | None) -> str:
    """Three significant digits, or a dash where there were too few samples."""
    if seconds is None:
        return UNKNOWN
    digits = 2 - math.floor(math.log10(max(1e3 * seconds, 1e-9)))
    return f"{1e3 * seconds:.{max(digits, 1)}f}"


def points(drop: float | None) -> str:
    """An accuracy drop in percentage points; negative is a gain."""
    return UNKNOWN if drop is None else f"{drop + 0.0:.2f}"

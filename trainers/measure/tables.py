"""Measured ways to train as table cells and as comma-separated values."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence

from trainers.cli import megabytes
from trainers.measure.results import Experiments, Ladder, Result, Sweep
from trainers.stats import Estimate

UNKNOWN = "-"
LADDER = ("rung", "batch>", "images/s>", "interval>", "ms/step>", "x first>", "95% interval>", "x before>",
          "95% interval >", "peak>", "loss>", "top-1 %>", "note")  # fmt: skip
SWEEP = ("batch>", "images/s>", "95% interval>", "ms/step>", "peak>", "note")
EXPERIMENTS = ("experiment", "device", "batch>", "epoch s>", "images/s>", "95% interval>", "ms/step>", "peak>", "loss>",
               "top-1 %>", "note")  # fmt: skip


def ladder_rows(ladder: Ladder) -> list[list[str]]:
    """One row a rung, in the order of LADDER."""
    return [
        [
            result.name, str(result.switches.batch_size), *pace(result), *ratio(ladder.ratio(result)),
            *ratio(result.ratio_before), *cost(result), *learned(result), ladder_note(ladder, result),
        ]
        for result in ladder.results
    ]  # fmt: skip


def ladder_note(ladder: Ladder, result: Result) -> str:
    """What is to be said about a rung."""
    if result.error:
        return result.error
    if not result.kept:
        return "slower: left out of the next rungs"
    if result is ladder.best:
        return "best"
    before = result.ratio_before
    return "no clear gain" if before is not None and before.low <= 1 else ""


def sweep_rows(sweep: Sweep) -> list[list[str]]:
    """One row a batch size, in the order of SWEEP."""
    best = sweep.sweet_spot
    return [
        [
            str(result.switches.batch_size), *pace(result), *cost(result),
            result.error or ("sweet spot" if result is best else ""),
        ]
        for result in sweep.results
    ]  # fmt: skip


def experiment_rows(record: Experiments) -> list[list[str]]:
    """One row an experiment, in the order of EXPERIMENTS."""
    return [
        [
            result.title, result.device, str(result.switches.batch_size), number(record.epoch_s(result)),
            *pace(result), *cost(result), *learned(result), result.error or "",
        ]
        for group in record.groups.values()
        for result in group
    ]  # fmt: skip


def pace(result: Result) -> list[str]:
    """Images a second, their interval, milliseconds a step."""
    if result.pace is None or result.step_s is None:
        return [UNKNOWN] * 3
    low, high = number(result.pace.low), number(result.pace.high)
    return [number(result.pace.value), f"{low} to {high}", number(1e3 * result.step_s)]


def ratio(estimate: Estimate | None) -> list[str]:
    """A ratio and its interval."""
    if estimate is None:
        return [UNKNOWN] * 2
    return [f"{estimate.value:.2f}", f"{estimate.low:.2f} to {estimate.high:.2f}"]


def cost(result: Result) -> list[str]:
    """Peak memory."""
    return [megabytes(result.peak_bytes) if result.peak_bytes and result.turns else UNKNOWN]


def learned(result: Result) -> list[str]:
    """Test loss and top-1."""
    if result.learned is None:
        return [UNKNOWN] * 2
    return [f"{result.learned.loss:.3f}", f"{result.learned.top1:.1f}"]


def number(value: float | None) -> str:
    """Three significant digits or whole numbers."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def ladder_csv(ladder: Ladder) -> str:
    """One line a rung, numbers in full; empty where nothing is known."""
    lines = []
    for result in ladder.results:
        line = plain(result) | {"kept": result.kept, "note": ladder_note(ladder, result)}
        lines.append(line | _estimate("ratio", ladder.ratio(result)) | _estimate("ratio_before", result.ratio_before))
    return render(lines)


def sweep_csv(sweep: Sweep) -> str:
    """One line a batch size."""
    return render([plain(result) | {"sweet_spot": result is sweep.sweet_spot} for result in sweep.results])


def experiments_csv(record: Experiments) -> str:
    """One line an experiment."""
    return render(
        [
            {"group": name} | plain(result) | {"epoch_s": record.epoch_s(result)}
            for name, group in record.groups.items()
            for result in group
        ]
    )


def plain(result: Result) -> dict[str, object]:
    """A result's own values: seconds, bytes, percent."""
    line: dict[str, object] = {
        "name": result.name, "title": result.title, "device": result.device, "batch": result.switches.batch_size,
        "threads": result.switches.cores, "precision": result.switches.precision,
    }  # fmt: skip
    line |= _estimate("images_per_second", result.pace)
    learned = result.learned
    return line | {
        "step_s": result.step_s, "first_step_s": result.first_step_s, "peak_bytes": result.peak_bytes,
        "images": learned and learned.images, "test_images": learned and learned.test_images,
        "loss": learned and learned.loss, "top1": learned and learned.top1, "error": result.error,
    }  # fmt: skip


def render(lines: Sequence[Mapping[str, object]]) -> str:
    """Equally shaped lines under a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def described(results: Iterable[Result], estimates: Iterable[Estimate | None]) -> str:
    """`name (0.97, 0.95 to 1.01)`, comma-separated."""
    return ", ".join(
        f"{result.name} ({estimate.value:.2f}, {estimate.low:.2f} to {estimate.high:.2f})" if estimate else result.name
        for result, estimate in zip(results, estimates, strict=True)
    )


def _estimate(name: str, estimate: Estimate | None) -> dict[str, object]:
    return {
        name: estimate and estimate.value, f"{name}_low": estimate and estimate.low,
        f"{name}_high": estimate and estimate.high,
    }  # fmt: skip

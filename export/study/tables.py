"""A study as table cells: for the terminal, as Markdown and as comma-separated values."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from export.study.record import PERCENTILES, Accuracy, Layer, Row, Study
from trainers import cli

NONE = "-"
TENSORRT = "TensorRT fuses on the GPU that it builds for: not known from the file"
WORTH = ("activation", ">max error", ">at x", ">mean error", ">logits max", ">logits mean", ">agree", ">top-1",
         ">drop [95%], points", ">p")  # fmt: skip
TUNED = (">tuned top-1", ">drop [95%] from exact, tuned", ">p ")
INPUTS = ("GELU", ">inputs", ">lowest", *(f">{p:g}%" for p in PERCENTILES), ">highest")

Table = tuple[str, Sequence[str], list[tuple[str, ...]]]


def show(study: Study, *, stderr: bool) -> None:
    """Print the tables and the notes."""
    for title, columns, rows in tables(study):
        cli.table(title, columns, rows, stderr=stderr)
    for note in notes(study):
        cli.console(stderr).print(note, markup=False)


def tables(study: Study) -> list[Table]:
    """Title, columns (`>`: right-aligned) and rows: what it costs, what engines make of it, what the GELUs get."""
    images = f"{study.images} {study.split} images of {study.data}"
    worth = [_worth(row) + (_tuned(row.after, row.is_exact) if study.finetune_steps else ()) for row in study.rows]
    steps = f"; tuned: {study.finetune_steps} steps" if study.finetune_steps else ""
    seen = study.seen
    ranges = [seen.whole, *seen.layers] if len(seen.layers) > 1 else [seen.whole]
    return [
        (f"{study.model}: {study.places} GELUs replaced; accuracy on {images}{steps}",
         (*WORTH, *(TUNED if study.finetune_steps else ())), worth),
        ("What engines compute in GELU's place", _engine_columns(study), [_engines(study, row) for row in study.rows]),
        (f"What the GELUs get, on {seen.images} {seen.split} images", INPUTS, [_layer(layer) for layer in ranges]),
    ]  # fmt: skip


def notes(study: Study) -> list[str]:
    """What the tables do not say by themselves."""
    return [
        "error: distance from GELU, the largest over the range seen, the mean over the inputs seen; logits: change in "
        "standard deviations of the exact logits",
        "p: McNemar's exact test, how likely such a drop is by chance alone",
        *([_tuning_note(study)] if study.finetune_steps else []),
        TENSORRT,
        _latency_note(study),
    ]


def _tuning_note(study: Study) -> str:
    return (f"tuned: {study.finetune_steps} steps on the training images, every activation alike, exact among them; "
            "nothing was chosen on these test images")  # fmt: skip


def _latency_note(study: Study) -> str:
    if study.report is None:
        return f"latency: not measured yet: python -m runtime bench {study.model}, then this command again"
    return f"latency: median at batch 1, from {study.report}; uncertainty: python -m runtime report"


def _worth(row: Row) -> tuple[str, ...]:
    if row.is_exact:
        return (row.name, *[NONE] * 6, f"{row.before.top1:.2f}%", NONE, NONE)
    return (
        row.name, f"{row.max_error:.2g}", f"{row.max_error_at:+.2f}", f"{row.mean_error:.2g}", f"{row.logit_max:.2g}",
        f"{row.logit_mean:.2g}", f"{row.agreement:.1f}%", *_accuracy(row.before),
    )  # fmt: skip


def _tuned(after: Accuracy | None, is_exact: bool) -> tuple[str, ...]:
    if after is None:
        return (NONE, NONE, NONE)
    return (f"{after.top1:.2f}%", NONE, NONE) if is_exact else _accuracy(after)


def _accuracy(found: Accuracy) -> tuple[str, str, str]:
    low, high = found.interval
    return f"{found.top1:.2f}%", f"{found.drop:+.2f} [{low:+.2f}, {high:+.2f}]", f"{found.p_value:.2g}"


def _names(study: Study) -> list[str]:
    return list(dict.fromkeys(name for row in study.rows for name in row.engines))


def _timed(study: Study) -> list[str]:
    return list(dict.fromkeys(name for row in study.rows for name in row.latency_ms))


def _engine_columns(study: Study) -> tuple[str, ...]:
    timed = [f">{name} ms" for name in _timed(study)] or [f">latency: python -m runtime bench {study.model}"]
    return ("activation", ">ONNX nodes", *_names(study), *timed)


def _engines(study: Study, row: Row) -> tuple[str, ...]:
    made = (row.engines.get(name, NONE) for name in _names(study))
    times = [f"{row.latency_ms[name]:.3g}" if name in row.latency_ms else NONE for name in _timed(study)] or [NONE]
    return (row.name, str(row.nodes), *made, *times)


def _layer(layer: Layer) -> tuple[str, ...]:
    values = (layer.low, *layer.percentiles, layer.high)
    return (layer.name, f"{layer.values:.3g}", *(f"{value:.2f}" for value in values))


def markdown(study: Study) -> str:
    """The tables and notes as a page."""
    parts = [f"# GELU and what may stand in for it: {study.model}", f"`{study.command}`, {study.environment.cpu}",
             "![Error over x, and the loss of accuracy](gelu.png)"]  # fmt: skip
    for title, columns, rows in tables(study):
        parts += [f"## {title}", cli.markdown(columns, rows)]
    parts.append("\n".join(f"- {note}" for note in notes(study)))
    return "\n\n".join(parts) + "\n"


def comma_separated(study: Study) -> str:
    """One line an activation, in full precision."""
    names, timed = _names(study), _timed(study)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    accuracy = ("top1", "drop", "drop_low", "drop_high", "p_value")
    writer.writerow([
        "activation", "max_error", "max_error_at", "mean_error", "logit_max", "logit_mean", "agreement", *accuracy,
        *(f"tuned_{name}" for name in accuracy), "nodes", *names, *(f"{name}_ms" for name in timed),
    ])  # fmt: skip
    for row in study.rows:
        writer.writerow([
            row.name, row.max_error, row.max_error_at, row.mean_error, row.logit_max, row.logit_mean, row.agreement,
            *_values(row.before), *_values(row.after), row.nodes, *(row.engines.get(name, "") for name in names),
            *(row.latency_ms.get(name, "") for name in timed),
        ])  # fmt: skip
    return text.getvalue()


def _values(found: Accuracy | None) -> tuple[float | str, ...]:
    return (found.top1, found.drop, *found.interval, found.p_value) if found else ("",) * 5

"""The table that an export ends with."""

from __future__ import annotations

from collections.abc import Sequence

from export.artifact import Artifact, Parity
from export.variant import ONNX
from trainers import cli

COLUMNS = (
    "variant", ">size", ">max error", ">cosine", ">agree", ">top-1", ">drop [95%], points", ">p", "verdict",
)  # fmt: skip
SPARE = (">p", ">max error", ">cosine", ">agree", ">top-1")  # in this order, on a narrow terminal
UNKNOWN = "-"
INFORMATIVE = 15.0  # percent: a checkpoint below it has little accuracy to lose


def show(artifacts: Sequence[Artifact], *, stderr: bool = False) -> None:
    """Print one row an artifact; all are of one model, judged on the same images."""
    cli.table(title(artifacts), COLUMNS, rows(artifacts), stderr=stderr, spare=SPARE)


def markdown(artifacts: Sequence[Artifact]) -> str:
    """The same as a Markdown table, under a line that says what it shows."""
    return f"{title(artifacts)}:\n\n{cli.markdown(COLUMNS, rows(artifacts))}\n"


def title(artifacts: Sequence[Artifact]) -> str:
    """What they are compared with, and on which images."""
    first = _basis(artifacts)
    parity = first.parity
    images = f"{parity.images} {parity.split} images"
    if parity.checkpoint_accuracy is None:
        reference = "the file itself in ONNX Runtime" if first.variant.exporter == ONNX else "PyTorch"
        return f"{first.model}: accuracy not measured; compared with {reference} on {images}"
    weak = "; not informative: too inaccurate for a drop to mean much" * (parity.checkpoint_accuracy < INFORMATIVE)
    return f"{first.model}: top-1 {parity.checkpoint_accuracy:.2f}% on {images}{weak}"


def _basis(artifacts: Sequence[Artifact]) -> Artifact:
    """The first of those that were judged on most images."""
    return max(artifacts, key=lambda one: one.parity.images)


def rows(artifacts: Sequence[Artifact]) -> list[tuple[str, ...]]:
    """One row each; one that was judged on fewer images than the title names says so."""
    images = _basis(artifacts).parity.images
    return [_row(one, "" if one.parity.images == images else f" (on {one.parity.images} images)") for one in artifacts]


def _row(artifact: Artifact, note: str) -> tuple[str, ...]:
    parity = artifact.parity
    return (
        f"{artifact.variant.name(artifact.model)}{note}",
        cli.megabytes(sum(file.bytes for file in artifact.files)),
        f"{parity.max_abs_err:.2g}",
        f"{parity.cosine:.5f}",
        f"{parity.top1_agreement:.1f}%",
        UNKNOWN if parity.accuracy is None else f"{parity.accuracy:.2f}%",
        drop(parity),
        UNKNOWN if parity.p_value is None else f"{parity.p_value:.2g}",
        "ok" if parity.passed else "FAILED",
    )


def drop(parity: Parity) -> str:
    """Points of top-1 lost against the checkpoint, with the paired 95% interval."""
    if parity.drop is None or parity.drop_interval is None:
        return UNKNOWN
    low, high = parity.drop_interval
    return f"{parity.drop:+.2f} [{low:+.2f}, {high:+.2f}]"

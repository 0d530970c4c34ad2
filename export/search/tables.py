"""What a sensitivity record and a search say, as table rows and as comma-separated values."""

from __future__ import annotations

import csv
import io
import math

from export.search.records import LayerDamage, Search, Sensitivity

COLUMNS = ("layer", "weight", "operator", ">KL, nats", ">agree", ">cosine", ">saved", ">KL / ms saved")
CSV_COLUMNS = (
    "layer", "weight", "source", "operator", "kl_nats", "agreement_percent", "cosine", "saved_seconds", "estimated",
    "kl_per_second_saved",
)  # fmt: skip


def title(record: Sensitivity) -> str:
    """Which figures these are."""
    basis = record.basis
    times = "times by profile" if record.costs else "times estimated from FLOPs and bytes"
    return (
        f"{record.file}: each layer alone in int8 ({basis.target}), on {basis.images} {basis.split} images; {times}; "
        "what hurts most for the time saved comes first"
    )


def rows(record: Sensitivity, top: int) -> list[tuple[str, ...]]:
    """The first `top` layers, in the order of COLUMNS."""
    return [_row(layer) for layer in record.layers[:top]]


def _row(layer: LayerDamage) -> tuple[str, ...]:
    scores = layer.scores
    return (
        layer.name,
        layer.weight or "-",
        layer.operator,
        f"{scores.kl:.2e}",
        f"{100 - scores.disagreement:.1f}%",
        f"{scores.cosine:.6f}",
        milliseconds(layer.saved) + ("~" if layer.estimated else ""),
        "slower" if layer.saved < 0 else "-" if math.isinf(layer.rate) else f"{layer.rate / 1e3:.2e}",
    )


def _values(layer: LayerDamage) -> tuple[object, ...]:
    scores = layer.scores
    rate = "" if math.isinf(layer.rate) else layer.rate
    return (
        layer.name, layer.weight, layer.source or "", layer.operator, scores.kl, 100 - scores.disagreement,
        scores.cosine, layer.saved, layer.estimated, rate,
    )  # fmt: skip


def milliseconds(seconds: float) -> str:
    """Signed, with three significant digits."""
    return f"{1e3 * seconds:.3g} ms" if abs(seconds) >= 1e-4 or seconds == 0 else f"{1e6 * seconds:.3g} us"


def as_csv(record: Sensitivity) -> str:
    """All layers, in the record's order; a rate is empty where nothing is saved."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    writer.writerows(map(_values, record.layers))
    return text.getvalue()


def outcome(record: Search) -> str:
    """What a search found, in one line."""
    lost, (low, high) = record.lost(record.chosen)
    what = "points of top-1 lost" if record.measure == "accuracy" else "percent of images with another top-1"
    why = "" if record.measure == "accuracy" else " (accuracy would not tell)"
    basis = record.basis
    return (
        f"{len(record.kept)} of {len(record.layers)} layers stay in float; {lost:+.2f} {what} [{low:+.2f}, {high:+.2f}]"
        f" on {basis.images} {basis.split} images, {record.max_drop:g} allowed{why}; tried {len(record.tried)} "
        "assignments"
    )

"""Prices: the time that int8 saves in each layer, from profiles or estimated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from export.costs import Costs, Saving, estimate, load_costs, savings
from export.search.records import LayerDamage
from trainers.manifest import UserError, sha256

if TYPE_CHECKING:
    from export.search.subject import Subject


@dataclass(frozen=True)
class Prices:
    """Seconds of one run of the fp32 file, and what int8 saves of them by node name."""

    total: float
    saved: dict[str, Saving]
    costs: tuple[str, ...]  # sha256 of the profiles

    def price(self, layers: Iterable[LayerDamage]) -> tuple[LayerDamage, ...]:
        """The layers with what each saves, the most damage by second saved first.

        A layer that is not in the fp32 file, or whose operator is not known, saves nothing.
        """
        none = Saving("", 0.0, True)
        found = [(layer, self.saved.get(layer.source or "", none)) for layer in layers]
        priced = (replace(layer, saved=saving.seconds, estimated=saving.estimated) for layer, saving in found)
        return tuple(sorted(priced, key=lambda layer: (layer.rate, layer.scores.kl), reverse=True))

    def seconds(self, layers: Iterable[LayerDamage], kept: Iterable[str]) -> float:
        """Seconds of one run with these layers in float and all others in int8."""
        left = set(kept)
        return self.total - sum(layer.saved for layer in layers if layer.name not in left)


def prices(subject: Subject, files: Sequence[Path]) -> Prices:
    """Prices by no profile, one of the fp32 file, or one of it and one of the int8 file.

    Raises UserError where a profile is of another file.
    """
    if len(files) > 2:
        raise UserError("--costs is given more than twice; give the profiles of the fp32 file and of the int8 file")
    digests = tuple(sha256(_existing(file)) for file in files)
    if not files:
        total = sum(seconds["fp32"] for seconds in estimate(subject.graph).values())
        return Prices(total, savings(subject.graph), digests)
    before = load_costs(files[0], subject.path)
    costs: Costs | tuple[Costs, Costs] = before
    if len(files) == 2:
        costs = (before, load_costs(files[1], _quantized(subject)))
    return Prices(sum(before.seconds().values()), savings(subject.graph, costs), digests)


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise UserError(f"--costs {file}: no such file; give a profile")
    return file


def _quantized(subject: Subject) -> Path:
    """The file with all layers in int8, which the second profile is of."""
    path = subject.job.folder / f"{subject.name}.onnx"
    if not path.is_file():
        raise UserError(
            f"{path}: no such file to compare the second profile with; make it with: python -m export "
            f"{subject.job.checkpoint.model} --quantize --target {subject.target}"
        )
    return path

"""Each layer quantized alone: measured on validation images, kept, and ranked by what it saves."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import TYPE_CHECKING

from export.search.journal import Journal
from export.search.records import LayerDamage, Sensitivity
from trainers import cli
from trainers.manifest import environment

if TYPE_CHECKING:
    from export.search.quantizer import Layer
    from export.search.records import Basis
    from export.search.savings import Prices
    from export.search.subject import Subject

FOLDER = "sensitivity"


def rank(subject: Subject, count: int, prices: Prices) -> tuple[Sensitivity, Path]:
    """The damage that each layer does alone on `count` images, with its price; and where its record lies.

    What is measured already is not measured again, also after an interruption. Raises CheckFailed where the graph has
    nothing to quantize.
    """
    began = time.perf_counter()
    basis = subject.basis(count)
    path = subject.job.folder / FOLDER / f"{subject.name}-{basis.key}.json"
    known = _known(path, basis)
    if known is not None and known.costs == prices.costs:
        return known, path
    layers = known.layers if known is not None else _measure(subject, basis, count)
    record = Sensitivity(
        model=subject.job.checkpoint.model,
        file=subject.path.name,
        basis=basis,
        costs=prices.costs,
        layers=prices.price(layers),
        seconds=known.seconds if known is not None else time.perf_counter() - began,
        environment=environment(),
    )
    record.save(path)
    return record, path


def _known(path: Path, basis: Basis) -> Sensitivity | None:
    record = Sensitivity.find(path)
    return record if record and record.basis == basis else None


def _measure(subject: Subject, basis: Basis, count: int) -> list[LayerDamage]:
    journal = Journal(subject.job.folder / FOLDER / f"{subject.name}-{basis.key}.jsonl", LayerDamage, _name)
    quantizer = subject.quantizer
    with subject.judge(count) as judge, cli.progress() as bars:

        def measure(layer: Layer) -> LayerDamage:
            return LayerDamage(
                name=layer.name,
                source=layer.source,
                operator=layer.operator,
                weight=layer.weight,
                scores=judge(quantizer.alone(layer)),
            )

        return [
            journal.get(layer.name, functools.partial(measure, layer))
            for layer in bars.track(quantizer.layers, description="layers")
        ]


def _name(layer: LayerDamage) -> str:
    return layer.name

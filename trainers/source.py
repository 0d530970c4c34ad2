"""Source: where labelled images come from, in the form that every file of trainers/data defines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainers.download import Download
    from trainers.images import Images
    from trainers.tree import Tree


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a source is asked for."""

    shape: tuple[int, int, int]  # (channels, height, width) that the model takes
    num_classes: int | None = None  # the model's logits; only procedural images follow it
    seed: int = 0
    argument: str = ""  # what follows the colon in `--data name:argument`


@dataclass(frozen=True, kw_only=True)
class Raw:
    """What a source yields: its classes and one Images a split. `train` is there; `val` and `test` may be missing."""

    classes: tuple[str, ...]
    splits: Mapping[str, Images]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data source that can be named on the command line.

    A source that reads files says by `recognises` whether a tree is laid out its way and reads it by `load`; a
    procedural one makes its images by `make`, and `argument` gives what follows its name in full, defaults filled in,
    so that one choice has one pack. `mean` and `std` are its convention, one value a channel, for pixels
    in [0, 1]. `expected` describes the layout in a few words, for the message when nothing is recognised.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    expected: str = ""
    recognises: Callable[[Tree], bool] | None = None
    load: Callable[[Tree, Request], Raw] | None = None
    make: Callable[[Request], Raw] | None = None
    argument: Callable[[Request], str] | None = None
    downloads: tuple[Download, ...] = ()


def statistics(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Per-channel statistics for another number of channels: a grey value serves each, RGB values are averaged."""
    if len(values) == channels:
        return values
    return (round(sum(values) / len(values), 4),) * channels

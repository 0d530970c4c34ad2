"""The command line of `--quantize auto`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from export.search import AUTO, MAX_DROP, SEARCH_IMAGES
from trainers import cli

if TYPE_CHECKING:
    from export.job import Job
    from export.variant import Variant


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What a search may spend, and by which times it chooses."""
    group = parser.add_argument_group(f"--quantize {AUTO}", "which layers are int8 is chosen on validation images")
    group.add_argument(
        "--max-drop",
        type=points,
        metavar="POINTS",
        help=f"top-1 that it may cost, in percentage points (default: {MAX_DROP})",
    )
    group.add_argument(
        "--search-images", type=count, default=SEARCH_IMAGES, metavar="N|all", help=f"default: {SEARCH_IMAGES}"
    )
    add_costs(group)


def add_costs(parser: argparse._ActionsContainer) -> None:
    """`--costs`, once or twice."""
    parser.add_argument(
        "--costs",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a profile of the fp32 file that int8 is made of (the rewritten one where a rewrite matched); twice: and "
        "one of the int8 file (default: estimates by FLOPs and bytes)",
    )


def asked(arguments: argparse.Namespace) -> bool:
    """Whether `--quantize` names the search."""
    return arguments.quantize is not None and AUTO in arguments.quantize.split(",")


def search(arguments: argparse.Namespace, job: Job, variants: list[Variant]) -> list[Variant]:
    """The variants with the chosen assignment in place of int8, or beside it where that is asked for too."""
    from export.search.auto import Budget, resolve

    allowed = MAX_DROP if arguments.max_drop is None else arguments.max_drop
    budget = Budget(max_drop=allowed, images=arguments.search_images, costs=tuple(arguments.costs))
    plain = variants if "int8" in arguments.quantize.split(",") else []
    return list(dict.fromkeys([*plain, *resolve(job, variants, budget)]))


def points(text: str) -> float:
    """argparse type: percentage points. Raises ValueError."""
    value = float(text)
    if not 0 <= value <= 100:
        raise ValueError(text)
    return value


def count(text: str) -> int | None:
    """argparse type: a number of images, or None for all."""
    return None if text == "all" else cli.positive(text)


points.__name__, count.__name__ = "number of points from 0 to 100", "number of images"

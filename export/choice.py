"""Choice: which exporter's file is taken, and why. Nothing here imports onnx: it is part of an fp32 file's record."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from trainers import cli
from trainers.manifest import Struct, UserError

NOISE = 1e-4  # of the logits' deviation: two sums of floats in another order differ by so much in a deep model
FACTOR = 4.0  # above the noise, an error that is at most this multiple of the smallest is no worse
METADATA = 0.01  # a file must be smaller by this share to be called so: names and shapes take a different room


class Candidate(Struct, frozen=True, kw_only=True):
    """What one exporter made of a model. All but `exporter`, `reason` and `seconds` are empty where it made no file."""

    exporter: str
    reason: str  # why it is out of the question; empty where it may be chosen
    nodes: int = 0
    operators: dict[str, int] = msgspec.field(default_factory=dict)
    bytes: int = 0
    max_error: float = 0.0  # largest error of a logit, in standard deviations of PyTorch's logits
    seconds: float = 0.0  # that the exporter took


class Choice(Struct, frozen=True, kw_only=True):
    """The comparison of the exporters, on `images` reference images."""

    candidates: tuple[Candidate, ...]
    images: int
    chosen: str
    because: str

    @property
    def usable(self) -> tuple[str, ...]:
        """The exporters whose file is right."""
        return tuple(one.exporter for one in self.candidates if not one.reason)


def choose(candidates: Sequence[Candidate], images: int) -> Choice:
    """By parity, then fewest nodes, then fewest bytes, then order: dynamo is PyTorch's own default, and comes first.

    What failed, or is beyond the tolerance of fp32, is out. Raises UserError where nothing is left.
    """
    left = [one for one in candidates if not one.reason]
    if not left:
        reasons = "; ".join(one.reason for one in candidates)
        raise UserError(f"no exporter can write this model: {reasons}; mend the model, or keep to --exporter torch")
    because = "; ".join(f"{one.exporter} is out: {one.reason}" for one in candidates if one.reason)
    for criterion in () if because else CRITERIA:
        best, reason = criterion(left)
        if len(best) < len(left):
            left, because = best, because or reason
    first = left[0]
    because = because or "all are equal in error, nodes and size, and it is PyTorch's default"
    return Choice(candidates=tuple(candidates), images=images, chosen=first.exporter, because=because)


def _closest(candidates: list[Candidate]) -> tuple[list[Candidate], str]:
    errors = sorted(one.max_error for one in candidates)
    best = [one for one in candidates if one.max_error <= max(NOISE, FACTOR * errors[0])]
    return best, f"its error is {errors[0]:.1e} of the logits' deviation, not {errors[-1]:.1e}"


def _fewest_nodes(candidates: list[Candidate]) -> tuple[list[Candidate], str]:
    nodes = sorted(one.nodes for one in candidates)
    return [one for one in candidates if one.nodes == nodes[0]], f"it has {nodes[0]} nodes, not {nodes[-1]}"


def _smallest(candidates: list[Candidate]) -> tuple[list[Candidate], str]:
    sizes = sorted(one.bytes for one in candidates)
    best = [one for one in candidates if one.bytes * (1 - METADATA) <= sizes[0]]
    return best, f"it is {1 - sizes[0] / sizes[-1]:.0%} smaller"


CRITERIA: tuple[Callable[[list[Candidate]], tuple[list[Candidate], str]], ...] = (_closest, _fewest_nodes, _smallest)


def show(choice: Choice, *, stderr: bool) -> None:
    """Print the comparison."""
    cli.table(*as_table(choice), stderr=stderr)


def as_table(choice: Choice) -> tuple[str, tuple[str, ...], list[tuple[str, ...]]]:
    """Title, columns and rows: a column an exporter, a row an operator that they do not have equally often."""
    ok = [one for one in choice.candidates if one.operators]
    types = sorted({kind for one in ok for kind in one.operators})
    differ = [kind for kind in types if len({one.operators.get(kind, 0) for one in ok}) > 1]
    rows = [(kind, *(str(one.operators.get(kind, 0)) for one in ok)) for kind in differ]
    rows += [
        ("nodes", *(str(one.nodes) for one in ok)),
        ("size", *(cli.megabytes(one.bytes) for one in ok)),
        ("max error, deviations", *(f"{one.max_error:.1e}" for one in ok)),
        ("export, s", *(f"{one.seconds:.1f}" for one in ok)),
    ]
    title = f"exporters on {choice.images} images: {said(choice)}"
    return title, ("operator", *(f">{one.exporter}" for one in ok)), rows


def said(choice: Choice) -> str:
    """The choice in one line."""
    return f"{choice.chosen}, because {choice.because}"

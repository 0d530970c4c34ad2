"""How far a function is from GELU, over the inputs that a model really gives it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from export.activations import EXACT, make, shown
from export.study.seen import Histogram
from trainers.manifest import UserError

FINE = 20_001  # places between the ends of the range seen


@dataclass(frozen=True, kw_only=True)
class Distance:
    """From GELU: the largest over the range seen and where, the mean over the inputs seen, and the signed curve."""

    largest: float
    at: float
    mean: float
    curve: np.ndarray


def distance(name: str, whole: Histogram, points: np.ndarray) -> Distance:
    """Measure it. Raises UserError where the function is not finite within the range seen."""
    fine = np.linspace(whole.low, whole.high, FINE)
    errors = np.abs(_difference(name, fine))
    weights = whole.weights()
    used = weights > 0  # a function of the user's own need not be defined elsewhere
    centres = whole.centres()[used].clip(whole.low, whole.high)
    mean = float((np.abs(_difference(name, centres)) * weights[used]).sum())
    place = int(errors.argmax())
    return Distance(largest=float(errors[place]), at=float(fine[place]), mean=mean, curve=_difference(name, points))


@torch.no_grad()
def _difference(name: str, x: np.ndarray) -> np.ndarray:
    given = torch.from_numpy(x).float().view(1, 1, 1, -1)  # the module's own arithmetic and rank
    y, exact = make(name)(given.clone()), make(EXACT)(given)
    if not y.isfinite().all():
        where = float(given[~y.isfinite()][0])
        raise UserError(f"{shown(name)} is not finite at x = {where:.4g}, which this model reaches; mend it")
    return np.asarray((y.double() - exact.double()).flatten().numpy())

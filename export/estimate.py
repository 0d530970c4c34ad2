"""What an export will cost: bytes from the checkpoint's shapes, seconds from one timed batch."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from export.precision import PRECISIONS

if TYPE_CHECKING:
    from export.pipeline import Job
    from export.variant import Variant
    from trainers.checkpoint import Checkpoint

PROBE = 4  # images in the timed batch
FIXED_SECONDS = 5.0  # tracing, conversion and checks of one file, roughly


def estimate_size(checkpoint: Checkpoint, variant: Variant) -> int:
    """Expected bytes of a variant's file, by what its precision does to matrix weights and to the rest."""
    row, matrices = PRECISIONS[variant.precision], _matrix_parameters(checkpoint)
    return round(4 * (matrices * row.size_ratio + (checkpoint.parameters - matrices) * row.rest_ratio))


def estimate_seconds(job: Job, variants: list[Variant]) -> float:
    """Expected seconds: one PyTorch pass a GELU, one pass a file, calibration where it is needed."""
    import torch

    from trainers.checkpoint import load_model

    module = load_model(job.checkpoint, job.source)
    images = torch.zeros(PROBE, *job.checkpoint.input_shape)
    with torch.inference_mode():
        module(images)
        began = time.perf_counter()
        module(images)
    a_image = (time.perf_counter() - began) / PROBE
    count = len(job.verification.indices)
    passes = len({v.gelu for v in variants}) + len(variants)
    calibrated = sum(PRECISIONS[v.precision].calibrated for v in variants)
    return a_image * (count * passes + job.calibration_images * calibrated) + FIXED_SECONDS * len(variants)


def _matrix_parameters(checkpoint: Checkpoint) -> int:
    """Parameters of convolutions and fully connected layers."""
    import torch
    from torch import nn

    from trainers.checkpoint import build

    with torch.device("meta"):
        module = build(checkpoint)
    layers = (part for part in module.modules() if isinstance(part, nn.Conv2d | nn.Linear))
    return sum(math.prod(layer.weight.shape) for layer in layers)

"""Loss and accuracy of a module on a split."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.distributed import ALONE, World
from trainers.spec import Precision

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Score:
    """Mean loss, and accuracies in percent."""

    images: int
    loss: float
    top1: float
    top5: float


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The autocast context of a precision; none for fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, DTYPES[precision])


@torch.inference_mode()
def evaluate(
    module: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    precision: Precision,
    world: World = ALONE,
) -> Score:
    """Score a module on all processes' batches; it is left in eval mode. Sums stay on the device until the end."""
    module.eval()
    sums = torch.zeros(4, device=device, dtype=torch.float64)  # loss, top-1, top-5, images
    for images, labels in batches:
        with autocast(device, precision):
            logits = module(images)
        logits = logits.float()
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        sums += torch.stack([loss, ranked[:, 0].sum(), ranked.sum(), (labels >= 0).sum()])
    *sums_of_all, count = world.sum(sums).tolist()
    loss, top1, top5 = (total / max(1, count) for total in sums_of_all)
    return Score(images=int(count), loss=loss, top1=100 * top1, top5=100 * top5)

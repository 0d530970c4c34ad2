"""The weights a run starts from, by `--set init=NAME`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import init

from trainers.batches import evaluation_batches
from trainers.dataset import Dataset
from trainers.manifest import UserError
from trainers.spec import Preprocess

WHITEN_IMAGES = 2000  # whose patches are many more
WHITEN_FLOOR = 5e-4  # added to each power: directions without any are noise

INITIALISATIONS: dict[str, Callable[[Tensor], object]] = {
    "kaiming": lambda weight: init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu"),  # He et al., 2015
    "xavier": init.xavier_uniform_,  # Glorot and Bengio, 2010
    "trunc_normal": lambda weight: init.trunc_normal_(weight, std=0.02),  # as ConvNeXt, Liu et al., 2022
}


def initialise(module: nn.Module, name: str, images: Callable[[], Tensor]) -> None:
    """Draw convolution and linear weights anew and set their biases to zero; `default` leaves the model's own.

    `whiten` leaves them too, but for the first convolution, whose filters it takes from `images()`, float32
    (N, C, H, W) as the model gets them.
    """
    if name == "whiten":
        whiten(module, images())
    elif name != "default":
        for part in module.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                INITIALISATIONS[name](part.weight)
                if part.bias is not None:
                    init.zeros_(part.bias)


def some_images(data: Dataset, shape: tuple[int, int, int]) -> Tensor:
    """The first training images as a model of this input gets them, float32 (N, *shape)."""
    split, size = data.splits["train"], (shape[1], shape[2])
    preprocess = Preprocess(size=size, resize=max(size), mean=data.mean, std=data.std)
    first = np.arange(min(len(split), WHITEN_IMAGES))
    return torch.cat([images for images, _ in evaluation_batches(split, preprocess, 128, torch.device("cpu"), first)])


@torch.no_grad()
def whiten(module: nn.Module, images: Tensor) -> None:
    """Make the first convolution's outputs uncorrelated and of equal power on these images.

    Its filters become the leading eigenvectors of the patches' covariance, each divided by its deviation, followed by
    their negatives, so that a ReLU after them loses nothing (Page, "How to Train Your ResNet 8", 2019; Jordan, "94% on
    CIFAR-10 in 3.29 Seconds", 2024). Filters beyond these keep their weights.
    """
    conv = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
    if conv is None or conv.groups > 1:
        raise UserError("init=whiten: the model does not begin with an ordinary convolution; give another init")
    patches = F.unfold(images, conv.kernel_size, padding=0, stride=conv.stride).transpose(1, 2).flatten(0, 1)
    powers, vectors = torch.linalg.eigh(torch.cov(patches.T))  # ascending
    count = min(len(powers), conv.out_channels // 2)
    powers, vectors = powers[-count:].flip(0), vectors[:, -count:].flip(1)
    filters = (vectors / torch.sqrt(powers + WHITEN_FLOOR)).T.view(count, *conv.weight.shape[1:])
    conv.weight[: 2 * count] = torch.cat([filters, -filters])

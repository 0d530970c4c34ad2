"""torchvision's ResNet-18 at 32x32; `stem=cifar` replaces its 7x7/2 convolution and pooling by one 3x3 convolution."""

from __future__ import annotations

from torch import nn
from torchvision.models import resnet18

from trainers.manifest import UserError
from trainers.spec import ModelSpec, Recipe


def build(num_classes: int, input_shape: tuple[int, int, int], stem: str) -> nn.Module:
    """(N, channels, height, width) -> (N, num_classes) logits."""
    if stem not in ("imagenet", "cifar"):
        raise UserError(f"resnet18 has no stem {stem!r}; choose imagenet or cifar")
    model = resnet18(num_classes=num_classes)
    channels = input_shape[0]
    if stem == "cifar":
        model.conv1 = nn.Conv2d(channels, 64, kernel_size=3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    elif channels != 3:
        model.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return model


SPEC = ModelSpec(
    build=build,
    dataset="cifar10",
    input_shape=(3, 32, 32),
    num_classes=10,
    options={"stem": "imagenet"},
    recipes={
        # Three minutes on two cores.
        "cifar10": Recipe(
            epochs=7.5,
            batch_size=256,
            optimizer="sgd",
            lr=0.15,
            schedule="linear",
            warmup=0.2,
            weight_decay=1e-3,
            label_smoothing=0.1,
            init="whiten",
            flip=True,
            crop=2,
            precision="bf16",
            channels_last=True,
        ),
        # Mirroring would turn one class's orientation into another's.
        "synthetic": Recipe(
            epochs=3, batch_size=128, optimizer="sgd", lr=0.05, weight_decay=5e-4, precision="bf16", channels_last=True
        ),
    },
)

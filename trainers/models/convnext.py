"""A homebrew ConvNeXt whose LayerNorms have one weight a position, so the image size is part of the model.

18,166,472 parameters at 3x224x224 and 200 classes. The architecture follows Liu et al., "A ConvNet for the 2020s"
(2022), with three differences: the depthwise convolution widens by 4 (a channel multiplier), the norms are over
(C, H, W), and there is no layer scale.
"""

from __future__ import annotations

from torch import Tensor, nn

from trainers.manifest import UserError
from trainers.spec import ModelSpec, Recipe

CHANNELS = (64, 96, 128, 256)
EXPANSION = 4
REDUCTION = 32  # the input is this many times as wide as the last stage's maps


class Block(nn.Module):
    """x + f(x); f: depthwise 7x7 to 4 times the channels, norm, 1x1, GELU, 1x1 back. (N, dim, side, side) -> same."""

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        hidden = EXPANSION * dim
        self.depthwise = nn.Conv2d(dim, hidden, kernel_size=7, padding=3, groups=dim)
        self.norm = nn.LayerNorm([hidden, side, side])
        self.expand = nn.Conv2d(hidden, hidden, kernel_size=1)
        self.gelu = nn.GELU()
        self.project = nn.Conv2d(hidden, dim, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(self.gelu(self.expand(self.norm(self.depthwise(x)))))


class ConvNeXt(nn.Module):
    """(N, channels, size, size) -> (N, num_classes) logits. `blocks`: how many each of the four stages has."""

    def __init__(self, num_classes: int, input_shape: tuple[int, int, int], size: int, blocks: str = "3,3,9,3") -> None:
        super().__init__()
        counts = [int(count) for count in blocks.split(",") if count.isdecimal()]
        if len(counts) != len(CHANNELS) or 0 in counts or blocks != ",".join(map(str, counts)):
            raise UserError(f"convnext has no blocks {blocks!r}; give the number in each of its stages, as in 3,3,9,3")
        if size % REDUCTION:
            raise UserError(f"convnext takes sizes that are multiples of {REDUCTION}, not {size}; set another size")
        side = size // 4
        layers: list[nn.Module] = [
            nn.Conv2d(input_shape[0], CHANNELS[0], kernel_size=4, stride=4),
            nn.LayerNorm([CHANNELS[0], side, side]),
        ]
        for stage, (dim, count) in enumerate(zip(CHANNELS, counts, strict=True)):
            if stage:
                before = CHANNELS[stage - 1]
                layers += [nn.LayerNorm([before, side, side]), nn.Conv2d(before, dim, kernel_size=2, stride=2)]
                side //= 2
            layers += [Block(dim, side) for _ in range(count)]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.norm = nn.LayerNorm(CHANNELS[-1])
        self.head = nn.Linear(CHANNELS[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.pool(self.features(images)).flatten(1)))


SPEC = ModelSpec(
    build=ConvNeXt,
    dataset="tinyimagenet",
    input_shape=(3, 224, 224),
    num_classes=200,
    options={"size": 224, "blocks": "3,3,9,3"},
    recipes={
        "tinyimagenet": Recipe(
            epochs=4,
            batch_size=32,
            lr=5e-4,
            warmup=0.1,
            clip_norm=1.0,
            weight_decay=0.05,
            label_smoothing=0.1,
            flip=True,
            precision="bf16",
            channels_last=True,
            save_every=50,
        ),
        # Mirroring would turn one class's orientation into another's.
        "synthetic": Recipe(
            steps=72, batch_size=8, lr=1e-3, weight_decay=0.05, precision="bf16", channels_last=True, save_every=36
        ),
    },
    named={
        # Small images first: the maps of the norms are resized between the legs. 45 minutes on two cores.
        "fast": Recipe(
            sizes="64:9,128:3,224:0.5",
            batch_size=64,
            lr=1e-3,
            warmup=0.05,
            clip_norm=1.0,
            weight_decay=0.05,
            label_smoothing=0.1,
            flip=True,
            crop=6,
            precision="bf16",
            channels_last=True,
            save_every=100,
        ),
    },
)

"""The smallest useful image model: one convolution, ReLU, one fully connected layer."""

from __future__ import annotations

from torch import Tensor, nn

from trainers.spec import ModelSpec, Recipe


class SimpleCNN(nn.Module):
    """(N, channels, height, width) -> (N, num_classes) logits."""

    def __init__(self, num_classes: int, input_shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        channels, height, columns = input_shape
        self.conv = nn.Conv2d(channels, width, kernel_size=3, padding=1)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(width * height * columns, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.relu(self.conv(images)).flatten(1))


SPEC = ModelSpec(
    build=SimpleCNN,
    dataset="mnist",
    input_shape=(1, 28, 28),
    num_classes=10,
    options={"width": 32},
    recipes={
        "mnist": Recipe(epochs=18, batch_size=128, lr=8e-3, weight_decay=0.05, crop=2),
        "synthetic": Recipe(epochs=4, batch_size=64, lr=3e-3, weight_decay=0.05),
    },
)

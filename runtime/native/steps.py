"""What a program is made of: maps, and the fused steps that read and write them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(eq=False, kw_only=True)
class Map:
    """An activation: images of height x width x channels, uint8 with a scale and a zero point, or float.

    `padding` (top, left, bottom, right) is the widest that a step reading it needs around each image; what lies there
    is zero, which a uint8 map writes as its zero point.
    """

    channels: int
    height: int = 1
    width: int = 1
    wide: bool = False  # float32
    scale: float = 1.0
    zero: int = 0
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)

    def widen(self, padding: tuple[int, int, int, int]) -> None:
        """Let the border be at least that."""
        self.padding = tuple(map(max, self.padding, padding))  # type: ignore[assignment]  # four again


@dataclass(eq=False, kw_only=True)
class Step:
    """`names` are the file's nodes that it computes, for profiles and attestation."""

    source: Map
    target: Map
    names: tuple[str, ...]


@dataclass(eq=False, kw_only=True)
class Quantize(Step):
    """The image, float [image, channel, row, column], as a uint8 map. Its source is the input."""


@dataclass(eq=False, kw_only=True)
class Window:
    """How a kernel moves: sizes and steps as (rows, columns), padding as (top, left, bottom, right)."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)

    def over(self, source: Map) -> tuple[int, int]:
        """The height and width of what comes of it."""
        top, left, bottom, right = self.padding
        reach = [(size - 1) * step + 1 for size, step in zip(self.kernel, self.dilation, strict=True)]
        return (
            (source.height + top + bottom - reach[0]) // self.stride[0] + 1,
            (source.width + left + right - reach[1]) // self.stride[1] + 1,
        )


@dataclass(eq=False, kw_only=True)
class Convolution(Step):
    """An int8 convolution or matrix product of a uint8 map, and what follows it.

    Its sum is quantized to (`scale`, `zero`). Then it goes through `table`, or `added` is added, or neither.
    """

    weights: np.ndarray  # int8 [channels, input channels, rows, columns]
    weight_scales: np.ndarray  # [channels]
    bias: np.ndarray  # int32 [channels], in units of input scale * weight scale
    window: Window
    scale: float
    zero: int
    table: np.ndarray | None = None  # uint8 [256]
    added: Map | None = None


@dataclass(eq=False, kw_only=True)
class Depthwise(Step):
    """Float depthwise convolutions of one map, joined: the j-th one's channel c is j * channels + c of the target."""

    weights: np.ndarray  # float [joined, channels, rows, columns]
    bias: np.ndarray  # float [joined, channels]
    window: Window


@dataclass(eq=False, kw_only=True)
class Norm(Step):
    """LayerNormalization over a whole image. `of`: the depthwise step that sums its map on the way, if one does."""

    weight: np.ndarray  # float [channels, rows, columns]
    bias: np.ndarray
    epsilon: float
    of: Depthwise | None = None


@dataclass(eq=False, kw_only=True)
class Maximum(Step):
    """Max pooling of a uint8 map."""

    window: Window


@dataclass(eq=False, kw_only=True)
class Mean(Step):
    """The mean of each channel over the image."""


@dataclass(eq=False, kw_only=True)
class Lowered:
    """A whole network. `operators`: how many nodes of each type run in which precision."""

    outputs: Map
    steps: list[Step]
    operators: dict[str, dict[str, int]] = field(default_factory=dict)

"""Crop the taps of a convolution's kernel that only ever meet padding, at the input size that the graph is for.

Before: Conv(x: N x C x 1 x 1, W: M x C x 3 x 3, pads 1 1 1 1)
After:  Conv(x: N x C x 1 x 1, W: M x C x 1 x 1, pads 0 0 0 0)

On a map of one pixel a 3x3 kernel meets it with its centre tap only. A tap t at output o reads the pixel
o * stride - padding + t * dilation; it is dead when that lies outside of the map for every o. Padding that is left
may differ between the sides. Graphs with free heights or widths do not match.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from export.rewrites import nodes
from export.rewrites.nodes import array, attribute, dims, name, weight


@dataclass(frozen=True)
class Axis:
    """A convolution along one spatial axis; sizes in pixels, `kernel` in taps."""

    size: int
    kernel: int
    stride: int
    dilation: int
    before: int  # padding
    after: int

    @property
    def outputs(self) -> int:
        return (self.size + self.before + self.after - self.dilation * (self.kernel - 1) - 1) // self.stride + 1

    def window(self) -> tuple[int, int]:
        """The first tap to keep, and one past the last; (0, 0) when no tap meets a pixel."""
        starts = [o * self.stride - self.before for o in range(self.outputs)]
        met = [t for t in range(self.kernel) if any(0 <= s + t * self.dilation < self.size for s in starts)]
        # With dilation, the first live tap may start beyond the first pixel: no padding could then say so.
        return (min(met[0], self.before // self.dilation), met[-1] + 1) if met else (0, 0)

    def live(self) -> Axis | None:
        """Without its outer dead taps; None when it has none."""
        first, end = self.window()
        before = self.before - first * self.dilation
        reach = (self.outputs - 1) * self.stride + self.dilation * (end - first - 1) + 1
        after = max(reach - self.size - before, 0)  # pixels that no stride reaches stay out of reach
        made = replace(self, kernel=end - first, before=before, after=after)
        return made if 0 < made.kernel < self.kernel and made.outputs == self.outputs else None


def apply(model: ir.Model) -> int:
    """Crop in place; returns how many convolutions had dead taps."""
    return sum(_crop(node) for node in list(model.graph) if node.domain == "" and node.op_type == "Conv")


def _crop(node: ir.Node) -> bool:
    kernel, shape = array(node.inputs[1]), dims(node.inputs[0])
    if kernel is None or shape is None:
        return False
    sizes = [size for size in shape[2:] if size]
    if len(sizes) != kernel.ndim - 2:
        return False
    axes = _axes(node, kernel.shape[2:], sizes)
    kept = [axis.live() or axis for axis in axes]
    if kept == axes:
        return False
    starts = [axis.window()[0] if new is not axis else 0 for axis, new in zip(axes, kept, strict=True)]
    window = (slice(None), slice(None), *(slice(a, a + axis.kernel) for a, axis in zip(starts, kept, strict=True)))
    attributes = {
        **{key: value for key, value in node.attributes.items() if key != "auto_pad"},
        "kernel_shape": ir.AttrInt64s("kernel_shape", [axis.kernel for axis in kept]),
        "pads": ir.AttrInt64s("pads", [axis.before for axis in kept] + [axis.after for axis in kept]),
    }
    inputs = [node.inputs[0], weight(node, name(node.inputs[1]), kernel[window]), *node.inputs[2:]]
    nodes.replace(node.outputs[0], ir.node("Conv", inputs, attributes=attributes, name=node.name))
    return True


def _axes(node: ir.Node, kernel: tuple[int, ...], sizes: list[int]) -> list[Axis]:
    count = len(sizes)
    strides = attribute(node, "strides", [1] * count)
    dilations = attribute(node, "dilations", [1] * count)
    pads = attribute(node, "pads", [0] * (2 * count))
    automatic = attribute(node, "auto_pad", "NOTSET")
    axes = []
    for i, (size, taps, stride, dilation) in enumerate(zip(sizes, kernel, strides, dilations, strict=True)):
        before, after = pads[i], pads[i + count]
        if automatic.startswith("SAME"):  # as many outputs as strides fit; the odd pixel of padding goes to one side
            total = max((-(-size // stride) - 1) * stride + dilation * (taps - 1) + 1 - size, 0)
            before = total // 2 if automatic == "SAME_UPPER" else total - total // 2
            after = total - before
        axes.append(Axis(size, taps, stride, dilation, before, after))
    return axes

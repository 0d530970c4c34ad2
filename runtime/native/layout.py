"""Steps as an image of memory: buffers for the maps, packed weights, and one `Op` of `op.h` a step."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from runtime.backend import BackendError
from runtime.native.library import Kind, Op
from runtime.native.program import ALIGNED, Image
from runtime.native.steps import Convolution, Depthwise, Lowered, Map, Maximum, Mean, Norm, Quantize, Step, Window

LANES = 16  # floats in a vector
PANEL = 64  # channels that the convolution kernel takes at once
FEW = 32  # up to so many channels of a long input, a dot product for each is faster
HALF_MOST = 6e4  # what a half float can hold
SLACK = 4 * PANEL  # bytes behind everything, for kernels read whole vectors


def image(lowered: Lowered, batch: int, threads: int, *, half: bool = False) -> Image:
    """A network for one batch size and number of threads. `half`: what the file leaves in float is computed in bf16."""
    return _Layout(lowered, batch, threads, half).image()


class _Layout:
    """Everything gets a place in one stretch of memory; an op's pointers are places, made addresses by a program.

    A buffer belongs to maps of one shape and border, one after the other: what lies in a border is written once.
    """

    def __init__(self, lowered: Lowered, batch: int, threads: int, half: bool) -> None:
        self.lowered, self.batch, self.threads, self.half = lowered, batch, threads, half
        self._parts: list[np.ndarray] = []
        self._end = ALIGNED  # no place is 0, which is null
        self._sums: dict[int, int] = {}  # by the id of the map
        self._buffers = self._reserve()

    def image(self) -> Image:
        ops = [(op, index) for index, step in enumerate(self.lowered.steps) for op in self._ops(step)]
        room = np.zeros(self._end + ALIGNED, np.uint8)
        memory = room[-room.ctypes.data % ALIGNED :][: self._end]
        start = ALIGNED
        for index, part in enumerate(self._parts):
            memory[start : start + part.nbytes] = part
            start += _room(part.nbytes)
            self._parts[index] = part[:0].copy()  # all of them at once would be as much again
        out = self.lowered.outputs
        return Image(
            memory=memory, ops=np.stack([np.frombuffer(bytes(op), np.uint8) for op, _ in ops]),
            steps=tuple(index for _, index in ops), batch=self.batch, threads=self.threads,
            logits=(self._address(out), out.channels, _groups(out.channels) * LANES),
        )  # fmt: skip

    def _reserve(self) -> dict[int, int]:
        """A buffer for each map but the input, by its id; op.h says how a map lies in it."""
        steps = self.lowered.steps
        last = {id(source): index for index, step in enumerate(steps) for source in _read(step)}
        last[id(self.lowered.outputs)] = len(steps)
        free: dict[Any, list[int]] = defaultdict(list)
        made: dict[int, int] = {}
        alive: dict[int, Map] = {}
        for index, step in enumerate(steps):
            target = step.target
            idle = free[_key(target)]
            made[id(target)] = idle.pop() if idle else self._keep(_filled(target, self.batch))
            alive[id(target)] = target
            for key, of in list(alive.items()):
                if last.get(key, index) <= index:
                    free[_key(of)].append(made[key])
                    del alive[key]
        return made

    def _keep(self, array: np.ndarray) -> int:
        """The place that a copy of the array gets."""
        part = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        place, self._end = self._end, self._end + _room(part.nbytes)
        self._parts.append(part)
        return place

    def _address(self, of: Map, padding: tuple[int, ...] = (0, 0)) -> int:
        """Of the first element, or of where a window with that padding starts."""
        top, left, _, _ = of.padding
        row, pixel = self._strides(of)[0], LANES if of.wide else of.channels
        start = (top - padding[0]) * row + (left - padding[1]) * pixel
        return self._buffers[id(of)] + start * (4 if of.wide else 1)

    def _strides(self, of: Map) -> tuple[int, int, int]:
        """From one row, 16 channels and image to the next, in elements."""
        _, height, width = _outer(of)
        if of.wide:
            return width * LANES, height * width * LANES, _groups(of.channels) * height * width * LANES
        return width * of.channels, LANES, height * width * of.channels

    def _offsets(self, of: Map, height: int, width: int, stride: tuple[int, int] = (1, 1)) -> int:
        """Of each of height x width places of each image, from the first; the address of a list of them."""
        row, _, image = self._strides(of)
        places = np.add.outer(np.arange(self.batch) * image, np.arange(height) * stride[0] * row)
        columns = np.arange(width) * stride[1] * (LANES if of.wide else of.channels)
        if self.batch * image >= 2**31:
            raise BackendError(f"a batch of {self.batch} is more than its 32-bit offsets reach; give a smaller --batch")
        return self._keep(np.add.outer(places, columns).astype(np.int32))

    def _op(self, kind: Kind, step: Step, **fields: Any) -> Op:
        source, target = step.source, step.target
        in_row, in_block, in_image = self._strides(source) if id(source) in self._buffers else (0, 0, 0)
        out_row, out_block, out_image = self._strides(target)
        made = {
            "kind": kind, "images": self.batch, "height": target.height, "width": target.width,
            "channels": target.channels, "in_channels": source.channels, "in_row": in_row,
            "in_block": in_block, "in_image": in_image, "out_row": out_row, "out_block": out_block,
            "out_image": out_image, "wide": target.wide, "target": self._address(target),
            "source": self._address(source) if id(source) in self._buffers else 0,
            "out_scale": target.scale, "out_zero": target.zero,
        }  # fmt: skip
        return Op(**(made | fields))

    # One method a step.

    def _ops(self, step: Step) -> list[Op]:
        match step:
            case Quantize():
                return [self._op(Kind.QUANTIZE, step)]
            case Convolution():
                return [self._convolution(step)]
            case Depthwise():
                return [self._depthwise(step)]
            case Norm():
                return self._norm(step)
            case Maximum():
                return [self._op(Kind.MAXIMUM, step, **self._window(step.source, step.window))]
            case Mean():
                source = step.source
                return [self._op(Kind.MEAN, step, kernel_height=source.height, kernel_width=source.width,
                                 quantized=not source.wide, scale=source.scale, zero=source.zero)]  # fmt: skip
        raise TypeError(step)

    def _window(self, source: Map, window: Window) -> dict[str, int]:
        return {
            "kernel_height": window.kernel[0], "kernel_width": window.kernel[1], "stride_height": window.stride[0],
            "stride_width": window.stride[1], "source": self._address(source, window.padding),
        }  # fmt: skip

    def _convolution(self, step: Convolution) -> Op:
        """Taps that lie side by side are one; the kernel reads four bytes at a time, where too many against zeros."""
        source, target, window = step.source, step.target, step.window
        count = target.channels
        taps = step.weights.transpose(0, 2, 3, 1)  # as the map lies: rows, columns, channels
        row, _, _ = self._strides(source)
        if window.dilation[1] != 1:
            offsets = np.add.outer(np.arange(window.kernel[0]) * window.dilation[0] * row,
                                   np.arange(window.kernel[1]) * window.dilation[1] * source.channels)  # fmt: skip
            taps = taps.reshape(count, -1, source.channels)
        elif window.dilation[0] == 1 and row == window.kernel[1] * source.channels:
            offsets, taps = np.zeros(1, np.int64), taps.reshape(count, 1, -1)
        else:
            offsets = np.arange(window.kernel[0]) * window.dilation[0] * row
            taps = taps.reshape(count, window.kernel[0], -1)
        depth = -(-taps.shape[2] // 4) * 4
        scales = source.scale * step.weight_scales.astype(np.float64)
        shift = step.weights.astype(np.int64).sum(axis=(1, 2, 3)) * source.zero
        added = step.added
        # PRODUCT's groups of five channels would cross from one block of a float map to the next.
        joined = count <= LANES or all(
            not one.wide or self._strides(one)[1] == LANES for one in (target, added) if one is not None
        )
        alone = taps.shape[1] == 1 and count <= FEW and depth >= 16 * PANEL and joined
        fields: dict[str, Any] = {}
        if added is not None:
            fields = {"added": 2 if added.wide else 1, "residual": self._address(added), "residual_scale": added.scale,
                      "residual_zero": added.zero, "residual_block": self._strides(added)[1],
                      "residual_offsets": self._offsets(added, target.height, target.width)}  # fmt: skip
        if step.table is not None:
            fields["table"] = self._keep(step.table)
        return self._op(
            Kind.PRODUCT if alone else Kind.CONVOLUTION, step, depth=depth, taps=taps.shape[1],
            source=self._address(source, window.padding), scale=step.scale, zero=step.zero,
            weights=self._keep(_dots(taps) if alone else _panels(taps, depth)),
            multipliers=self._keep((scales / step.scale).astype(np.float32)),
            bias=self._keep((step.bias - shift).astype(np.int32)),
            in_offsets=self._offsets(source, target.height, target.width, window.stride),
            tap_offsets=self._keep(offsets.reshape(-1).astype(np.int32)),
            out_offsets=self._offsets(target, target.height, target.width), **fields,
        )  # fmt: skip

    def _depthwise(self, step: Depthwise) -> Op:
        joined, channels = step.weights.shape[:2]
        together = 1 if joined % 2 else 2
        groups = _groups(channels)
        taps = _pairs(step.weights) if self.half else step.weights
        values = np.concatenate([taps.reshape(joined, channels, -1), step.bias[:, :, None]], axis=2)
        padded = np.zeros((joined, groups * LANES, values.shape[2]), np.float32)
        padded[:, :channels] = values
        packed = padded.reshape(joined // together, together, groups, LANES, -1).transpose(0, 2, 4, 1, 3)
        sums = self._sums[id(step.target)] = self._keep(np.zeros((self.batch, self.threads, 2)))
        return self._op(
            Kind.DEPTHWISE, step, multiplier=joined, half=self.half, weights=self._keep(packed), sums=sums,
            **self._window(step.source, step.window),
        )  # fmt: skip

    def _norm(self, step: Norm) -> list[Op]:
        target, before = step.target, []
        sums = self._sums.get(id(step.source))
        if sums is None:
            sums = self._sums[id(step.source)] = self._keep(np.zeros((self.batch, self.threads, 2)))
            statistics = self._op(Kind.STATISTICS, step, height=step.source.height, width=step.source.width,
                                  channels=step.source.channels, sums=sums)  # fmt: skip
            before = [statistics]
        weight, bias = step.weight, step.bias
        if not target.wide:
            weight, bias = weight / np.float32(target.scale), bias / np.float32(target.scale) + np.float32(target.zero)
        kind = np.float16 if self.half and max(np.abs(weight).max(), np.abs(bias).max()) < HALF_MOST else np.float32
        return [*before, self._op(
            Kind.NORM, step, epsilon=step.epsilon, sums=sums, half=kind is np.float16,
            weights=self._keep(_blocks(weight).astype(kind)), bias=self._keep(_blocks(bias).astype(kind)),
        )]  # fmt: skip


def _panels(taps: np.ndarray, depth: int) -> np.ndarray:
    """int8 [channels, taps, bytes] as [panel][tap][depth / 4][channel][4], channels filled up to a multiple of 16."""
    channels, count, used = taps.shape
    filled = np.zeros((-(-channels // 16) * 16, count, depth), np.int8)
    filled[:channels, :, :used] = taps
    parts = [filled[start : start + PANEL] for start in range(0, len(filled), PANEL)]
    panels = [part.reshape(len(part), count, depth // 4, 4).transpose(1, 2, 0, 3).reshape(-1) for part in parts]
    return np.concatenate(panels)


def _dots(taps: np.ndarray) -> np.ndarray:
    """int8 [channels, 1, bytes] as [channels][bytes, filled up to a multiple of 64]."""
    filled = np.zeros((len(taps), -(-taps.shape[2] // PANEL) * PANEL), np.int8)
    filled[:, : taps.shape[2]] = taps[:, 0]
    return filled


def _blocks(values: np.ndarray) -> np.ndarray:
    """[channels, rows, columns] as [row][channel / 16][column][16], filled up with zeros."""
    channels, height, width = values.shape
    filled = np.zeros((_groups(channels) * LANES, height, width), np.float32)
    filled[:channels] = values
    return filled.reshape(-1, LANES, height, width).transpose(2, 0, 3, 1)


def _groups(channels: int) -> int:
    return -(-channels // LANES)


def _outer(of: Map) -> tuple[int, int, int]:
    """Channels, height and width with the border."""
    top, left, bottom, right = of.padding
    return of.channels, of.height + top + bottom, of.width + left + right


def _pairs(weights: np.ndarray) -> np.ndarray:
    """Kernels as bf16, two taps of a row in each float's bits; an odd row gets a zero."""
    bits = np.ascontiguousarray(weights, np.float32).view(np.uint32)
    halves = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)  # rounded to the nearest, ties to even
    even = np.pad(halves, [(0, 0)] * 3 + [(0, halves.shape[3] % 2)])
    return np.ascontiguousarray(even).view(np.float32)


def _room(size: int) -> int:
    return -(-(size + SLACK) // ALIGNED) * ALIGNED


def _read(step: Step) -> list[Map]:
    added = step.added if isinstance(step, Convolution) else None
    return [step.source] if added is None else [step.source, added]


def _key(of: Map) -> tuple[Any, ...]:
    return of.channels, of.height, of.width, of.wide, of.padding, any(of.padding) and not of.wide and of.zero


def _filled(of: Map, batch: int) -> np.ndarray:
    """A buffer with its border's value everywhere."""
    channels, height, width = _outer(of)
    if of.wide:
        return np.zeros(batch * height * width * _groups(channels) * LANES, np.float32)
    return np.full(batch * height * width * channels, of.zero, np.uint8)

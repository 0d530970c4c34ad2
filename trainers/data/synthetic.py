"""Procedural images: gratings whose orientation, frequency and colour tell the class, under noise.

Deterministic by seed on every machine: random bits come from a bit generator, whose stream NumPy never changes, and
the arithmetic is integer from there on. Random phase, contrast, background and noise hide the class; the orientation
and the frequency of each image stray from their class's, at times into the neighbour's, so no model reaches 100%.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from trainers.images import Indices, InMemory, Pixels
from trainers.manifest import UserError
from trainers.source import Raw, Request, Source

CLASSES = 10
LARGE = 128  # from this size on, fewer images, drawn at half the size
COUNTS = {"small": {"train": 6000, "val": 600, "test": 1000}, "large": {"train": 1600, "val": 200, "test": 500}}
BLOCK = 128  # images drawn at once: bounds the memory

LOWEST, OCTAVES = 3.5, 1.2  # cycles an image of the lowest frequency; the highest is this many octaves above
STRAY = 0.2  # standard deviation of orientation and frequency, in distances between neighbouring classes
TINT, TINT_STRAY = 48, 12  # grey levels that a class's colour moves the mean by, and their standard deviation
HIDDEN = 12  # in one image of so many nothing shows the class: the bound on every model's accuracy
CONTRAST = (40, 90)  # amplitude of the grating in grey levels, from, to
BACKGROUND = 16  # standard deviation of an image's brightness, and of its gradient from edge to edge
NOISE = 32  # additive noise is uniform within this many grey levels

STEPS = 1 << 12  # of a full turn in the sine table
FINE = 1 << 8  # a pixel's phase is kept this much finer than the table
SINE = np.rint(127 * np.sin(2 * np.pi * np.arange(STEPS) / STEPS)).astype(np.int32)


def make(request: Request) -> Raw:
    """Three splits for the request's shape. Raises UserError on a class count that cannot be met."""
    used = _classes_used(request)
    channels, height, width = request.shape
    large = min(height, width) >= LARGE
    shape = (height // 2, width // 2, channels) if large else (height, width, channels)
    splits = {}
    for stream, (name, count) in enumerate(COUNTS["large" if large else "small"].items()):
        bits = np.random.PCG64(np.random.SeedSequence([request.seed, stream]))
        labels = _shuffled(bits, count, used)
        array = np.empty((count, *shape), dtype=np.uint8)
        for start in range(0, count, BLOCK):
            array[start : start + BLOCK] = _draw(bits, labels[start : start + BLOCK], used, shape)
        splits[name] = InMemory(array=array, labels=labels)
    return Raw(classes=tuple(f"class {index}" for index in range(request.num_classes or used)), splits=splits)


def _argument(request: Request) -> str:
    used = _classes_used(request)
    return f"{used} of {request.num_classes or used}"


def _classes_used(request: Request) -> int:
    most = request.num_classes or 1000
    text = request.argument or str(min(CLASSES, most))
    if not (text.isascii() and text.isdigit() and 2 <= int(text) <= most):
        raise UserError(f"synthetic:{text} is no number of classes from 2 to {most}; write for example synthetic:10")
    return int(text)


def _shuffled(bits: np.random.PCG64, count: int, used: int) -> Indices:
    """Balanced labels in random order, int64 [count]."""
    order = np.argsort(bits.random_raw(count), kind="stable")
    return (np.arange(count, dtype=np.int64) % used)[order]


def _draw(bits: np.random.PCG64, labels: Indices, used: int, shape: tuple[int, int, int]) -> Pixels:
    """Images of these labels, uint8 [B, H, W, C]: background + tint + contrast * grating + noise."""
    height, width, channels = shape
    count = len(labels)
    shown = (_integers(bits, (count, 1, 1), HIDDEN) > 0).astype(np.int32)
    contrast = shown * (CONTRAST[0] + _integers(bits, (count, 1, 1), CONTRAST[1] - CONTRAST[0] + 1))
    pixels = (_grating(bits, labels, used, height, width) * contrast) >> 7
    gradient = np.rint(BACKGROUND * _normal(bits, (count, 2, 1, 1))).astype(np.int32)
    y, x = np.ogrid[:height, :width]
    pixels += gradient[:, 0] * (2 * y - height) // (2 * height) + gradient[:, 1] * (2 * x - width) // (2 * width)
    image = pixels[..., None] + _base(bits, labels, used, channels, shown[:, :, 0])[:, None, None, :]
    image += _integers(bits, image.shape, 2 * NOISE + 1) - NOISE
    drawn: Pixels = np.clip(image, 0, 255).astype(np.uint8)
    return drawn


def _grating(bits: np.random.PCG64, labels: Indices, used: int, height: int, width: int) -> NDArray[np.int32]:
    """A sine wave an image, -127 to 127, int32 [B, H, W]: the class sets its orientation and frequency."""
    count = len(labels)
    levels = max(round(math.sqrt(used / 2.5)), 1)  # 10 classes: 2 frequencies by 5 orientations
    orientations = -(-used // levels)
    stray = STRAY * _normal(bits, (2, count))
    angle = np.pi * (labels % orientations + stray[0]) / orientations
    octave = OCTAVES * (labels // orientations + stray[1]) / max(levels - 1, 1)
    cycles = LOWEST * 2.0**octave * STEPS * FINE
    # Steps a pixel, rounded once: from here on every machine computes the same bits.
    down = np.rint(cycles * np.sin(angle) / height).astype(np.int32)[:, None, None]
    right = np.rint(cycles * np.cos(angle) / width).astype(np.int32)[:, None, None]
    phase = _integers(bits, (count, 1, 1), STEPS * FINE)
    y, x = np.ogrid[:height, :width]
    steps = down * y.astype(np.int32) + right * x.astype(np.int32) + phase
    wave: NDArray[np.int32] = SINE[(steps // FINE) & (STEPS - 1)]
    return wave


def _base(
    bits: np.random.PCG64, labels: Indices, used: int, channels: int, shown: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Mean grey levels an image and channel, int32 [B, C]: random brightness, and the class's tint if `shown`."""
    turns = labels[:, None] * 3 / used + np.arange(channels) / 3  # neighbours in orientation differ in hue
    tint = TINT * shown * np.cos(2 * np.pi * turns) + TINT_STRAY * _normal(bits, turns.shape)
    brightness = BACKGROUND * _normal(bits, (len(labels), 1))
    return np.rint(128 + tint + brightness).astype(np.int32)


def _integers(bits: np.random.PCG64, shape: tuple[int, ...], below: int) -> NDArray[np.int32]:
    """Uniform integers from 0 to below - 1, int32; `below` up to 2**20."""
    count = math.prod(shape)
    words = bits.random_raw(-(-count // 4)).astype("<u8").view("<u2")[:count]
    return ((words.astype(np.int64) * below) >> 16).astype(np.int32).reshape(shape)


def _normal(bits: np.random.PCG64, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Roughly normal numbers of mean 0 and deviation 1: four uniform ones added, exact in float64."""
    total = _integers(bits, (4, *shape), 1 << 16).sum(axis=0)
    normal: NDArray[np.float64] = (total / (1 << 16) - 2) * math.sqrt(3)
    return normal


SOURCE = Source(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), make=make, argument=_argument)

"""Encoded: image files in a tree, decoded when they are read."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from trainers.images import Indices, Pixels, Shape, Unreadable
from trainers.tree import BROKEN, Tree

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
SAMPLE = 512  # images whose size is looked at: enough to tell a uniform set from a mixed one
BAD = (*BROKEN, ValueError, SyntaxError, TypeError, IndexError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """The images `names` of a tree, each decoded to `shape` (height, width, channels)."""

    tree: Tree
    names: Sequence[str]
    labels: Indices
    shape: Shape

    def read(self, indices: Indices) -> Pixels:
        """uint8 [B, H, W, C]. Raises Unreadable once all were tried."""
        found = np.empty((len(indices), *self.shape), dtype=np.uint8)
        failures = []
        for row, index in enumerate(indices):
            name = self.names[index]
            try:
                found[row] = decode(self.tree.read(name), self.shape)
            except BAD as error:
                failures.append(Unreadable(f"{self.tree.path}: {name}", _reason(error), 1))
        if failures:
            raise Unreadable.together(failures)
        return found

    def identity(self) -> str:
        digest = hashlib.sha256(repr(self.shape).encode())
        for name in self.names:
            digest.update(f"{name}:{self.tree.files[name]}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


def decode(content: bytes, shape: Shape) -> Pixels:
    """uint8 [H, W, C] from an image file; another size is scaled by its shorter side and cut at the centre."""
    with Image.open(io.BytesIO(content)) as image:
        return fitted(image, shape)


def fitted(image: Picture, shape: Shape) -> Pixels:
    """`decode` for an image that is open already."""
    height, width, channels = shape
    picture = _eight_bits(image).convert("L" if channels == 1 else "RGB")
    if picture.size != (width, height):
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(height, width, -1)


def read_image(path: Path, shape: Shape) -> Pixels:
    """`decode` for a file by itself. Raises Unreadable."""
    try:
        return decode(path.read_bytes(), shape)
    except BAD as error:
        raise Unreadable(str(path), _reason(error), 1) from None


def fit(image: Picture, shape: Shape) -> Pixels:
    """`fitted`, of which a lazily opened file may turn out broken. Raises Unreadable."""
    try:
        return fitted(image, shape)
    except BAD as error:
        raise Unreadable(str(getattr(image, "filename", "") or "the image"), _reason(error), 1) from None


def is_image(name: str) -> bool:
    """Whether a file's name is an image's; hidden files and archivers' own are not."""
    hidden = any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
    return name.lower().endswith(SUFFIXES) and not hidden


def stored_shape(tree: Tree, names: Sequence[str], wanted: tuple[int, int, int]) -> Shape:
    """The shape to store: native where the images have one size of at most twice the model's, else the model's.

    `wanted` is the model's (channels, height, width). Looks at SAMPLE images; the rest is fitted to what they say.
    """
    channels, height, width = wanted
    spread = np.unique(np.linspace(0, len(names) - 1, min(SAMPLE, len(names))).astype(int))
    sizes = {_size(tree, names[index]) for index in spread} - {None}
    depth = 1 if channels == 1 else 3
    if len(sizes) == 1 and (size := sizes.pop()) and size[0] <= 2 * width and size[1] <= 2 * height:
        return size[1], size[0], depth
    return height, width, depth


def _size(tree: Tree, name: str) -> tuple[int, int] | None:
    """(width, height) from the file's header; None if it cannot be read, which packing will report."""
    try:
        with Image.open(io.BytesIO(tree.read(name))) as image:
            return image.size
    except BAD:
        return None


def _eight_bits(image: Picture) -> Picture:
    """Scale 16-bit grey to 8 bits, which `convert` would clip; flatten transparency in palettes."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert("RGBA") if image.mode == "P" else image


def _reason(error: BaseException) -> str:
    text = str(error).partition("\n")[0]
    return "not an image format known here" if "cannot identify" in text else text or type(error).__name__

"""MNIST: handwritten digits, 28x28 grey, in IDX files as torchvision lays them out (MNIST/raw), plain or gzipped."""

from __future__ import annotations

import gzip
import zlib

import numpy as np

from trainers.download import Download
from trainers.images import InMemory, Pixels
from trainers.manifest import UserError
from trainers.source import Raw, Request, Source
from trainers.tree import Tree, by_name

PARTS = {"train": "train", "test": "t10k"}
MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
UNSIGNED_BYTE = 8  # the type code of IDX, third byte of the file


def recognises(tree: Tree) -> bool:
    return _find(tree, "train-images-idx3-ubyte") is not None


def load(tree: Tree, request: Request) -> Raw:
    """Train and test as the files name them. Raises UserError on a missing or damaged file."""
    return Raw(
        classes=tuple("0123456789"),
        splits={split: _split(tree, prefix) for split, prefix in PARTS.items()},
    )


def _split(tree: Tree, prefix: str) -> InMemory:
    pixels = _idx(tree, f"{prefix}-images-idx3-ubyte", dimensions=3)
    labels = _idx(tree, f"{prefix}-labels-idx1-ubyte", dimensions=1)
    if len(pixels) != len(labels) or not len(labels):
        raise UserError(f"{tree.path}: {len(pixels)} {prefix} images but {len(labels)} labels; get the files again")
    if labels.max() > 9:
        raise UserError(f"{tree.path}: {prefix} labels go up to {labels.max()}, not 9; get MNIST's own files")
    return InMemory(array=pixels[..., None], labels=labels.astype(np.int64))


def _idx(tree: Tree, name: str, dimensions: int) -> Pixels:
    """An IDX file of unsigned bytes: two zeros, type, number of dimensions, sizes (big-endian), then the data."""
    found = _find(tree, name)
    if found is None:
        raise UserError(f"{tree.path}: {name} is missing; put it beside the other files")
    content = tree.read(found)
    if found.endswith(".gz"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error):
            raise UserError(f"{tree.path}: {found} is not a complete gzip file; get it again") from None
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes((0, 0, UNSIGNED_BYTE, dimensions)):
        raise UserError(f"{tree.path}: {found} is not an IDX file of {dimensions}-dimensional bytes; get it again")
    sizes = [int(size) for size in np.frombuffer(content[4:start], dtype=">u4")]
    if len(content) - start != np.prod(sizes, dtype=object):
        raise UserError(f"{tree.path}: {found} says {'x'.join(map(str, sizes))} but holds {len(content) - start} "
                        "bytes; get it again")  # fmt: skip
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(sizes)


def _find(tree: Tree, name: str) -> str | None:
    """The path of the file of this name, plain before gzipped."""
    paths = by_name(tree, "raw", "MNIST/raw")
    return paths.get(name) or paths.get(f"{name}.gz")


def _download(name: str, size: int, md5: str) -> Download:
    return Download(name=name, urls=tuple(mirror + name for mirror in MIRRORS), bytes=size, md5=md5)


SOURCE = Source(
    mean=(0.1307,),
    std=(0.3081,),
    expected="MNIST/raw/train-images-idx3-ubyte and its companions",
    recognises=recognises,
    load=load,
    downloads=(
        _download("train-images-idx3-ubyte.gz", 9912422, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        _download("train-labels-idx1-ubyte.gz", 28881, "d53e105ee54ea40749a09fcbcd1e9432"),
        _download("t10k-images-idx3-ubyte.gz", 1648877, "9fb629c4189551a2d022fa330f9573f3"),
        _download("t10k-labels-idx1-ubyte.gz", 4542, "ec29112dd5afa0611ce80d1b7f02629c"),
    ),
)

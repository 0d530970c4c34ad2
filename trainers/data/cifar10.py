"""CIFAR-10: 32x32 colour images of ten things, from the official binary archive, which needs no unpickling."""

from __future__ import annotations

import numpy as np

from trainers.download import Download
from trainers.images import InMemory, Pixels
from trainers.manifest import UserError
from trainers.source import Raw, Request, Source
from trainers.tree import Tree, by_name

FILES = {"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ROW = 1 + 3 * 32 * 32  # a label, then the red, green and blue planes


def recognises(tree: Tree) -> bool:
    """Whether the batches are there, in either form."""
    return FILES["train"][0] in _names(tree) or _pickled(tree)


def load(tree: Tree, request: Request) -> Raw:
    """Train (five batches) and test. Raises UserError on the pickled form, or a missing or damaged batch."""
    if _pickled(tree):
        raise UserError(f"{tree.path}: this is cifar-10-python, whose pickles can run code when they are read; "
                        "give cifar-10-binary.tar.gz, or --data cifar10 to download it")  # fmt: skip
    return Raw(classes=CLASSES, splits={split: _split(tree, files) for split, files in FILES.items()})


def _pickled(tree: Tree) -> bool:
    return {"data_batch_1", "batches.meta"} <= _names(tree).keys()


def _split(tree: Tree, files: tuple[str, ...]) -> InMemory:
    rows = np.concatenate([_batch(tree, file) for file in files])
    planes = rows[:, 1:].reshape(-1, 3, 32, 32)
    return InMemory(array=np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels=rows[:, 0].astype(np.int64))


def _batch(tree: Tree, file: str) -> Pixels:
    """uint8 [N, ROW]."""
    path = _names(tree).get(file)
    if path is None:
        raise UserError(f"{tree.path}: {file} is missing; get cifar-10-binary.tar.gz again")
    content = tree.read(path)
    if not content or len(content) % ROW:
        raise UserError(f"{tree.path}: {file} holds {len(content)} bytes, no multiple of {ROW}; get it again")
    rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, ROW)
    if rows[:, 0].max() >= len(CLASSES):
        raise UserError(f"{tree.path}: {file} has a label above 9; get cifar-10-binary.tar.gz again")
    return rows


def _names(tree: Tree) -> dict[str, str]:
    return by_name(tree, "cifar-10-batches-bin", "cifar-10-batches-py")


SOURCE = Source(
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    expected="cifar-10-binary.tar.gz or its data_batch_1.bin to test_batch.bin",
    recognises=recognises,
    load=load,
    downloads=(
        Download(
            name="cifar-10-binary.tar.gz",
            urls=("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
            bytes=170052171,
            md5="c32a1d4ab5d03f1284b67883e8d87530",
        ),
    ),
)

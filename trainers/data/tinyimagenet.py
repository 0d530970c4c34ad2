"""Tiny ImageNet: 64x64 colour images of 200 classes, from the official archive.

Its test images have no labels, so its labelled validation set is our test, and our validation set is cut from train.
"""

from __future__ import annotations

import numpy as np

from trainers.download import Download
from trainers.encoded import Encoded, is_image, stored_shape
from trainers.manifest import UserError
from trainers.source import Raw, Request, Source
from trainers.tree import Tree, by_name

MARK = "val/val_annotations.txt"


def recognises(tree: Tree) -> bool:
    return _root(tree) is not None


def load(tree: Tree, request: Request) -> Raw:
    """Train, and the official validation set as test. Raises UserError on annotations that do not fit the files."""
    root = _root(tree)
    assert root is not None
    train = _train(tree, root)
    wnids = sorted(set(train.values()))
    if not wnids:
        raise UserError(f"{tree.path}: no images in train/<class>/images; get tiny-imagenet-200.zip again")
    names = list(train)
    shape = stored_shape(tree, names, request.shape)
    number = {wnid: index for index, wnid in enumerate(wnids)}

    def encoded(images: dict[str, str]) -> Encoded:
        labels = np.array([number[wnid] for wnid in images.values()], dtype=np.int64)
        return Encoded(tree=tree, names=list(images), labels=labels, shape=shape)

    return Raw(
        classes=tuple(_words(tree, root, wnids)),
        splits={"train": encoded(train), "test": encoded(_validation(tree, root, number))},
    )


def _root(tree: Tree) -> str | None:
    """The archive's folder that holds train and val, as a prefix."""
    root = by_name(tree, "tiny-imagenet-200").get("wnids.txt", "").removesuffix("wnids.txt")
    return root if f"{root}{MARK}" in tree.files else None


def _train(tree: Tree, root: str) -> dict[str, str]:
    """The class of each training image, by its path: train/<wnid>/images/<file>."""
    found = {}
    for path in tree.files:
        parts = path.removeprefix(root).split("/")
        if len(parts) == 4 and parts[0] == "train" and parts[2] == "images" and is_image(path):
            found[path] = parts[1]
    return found


def _validation(tree: Tree, root: str, known: dict[str, int]) -> dict[str, str]:
    """The class of each validation image, by its path, as the annotations say: file, wnid, then a box, by tabs."""
    found = {}
    for number, line in enumerate(tree.read(f"{root}{MARK}").decode(errors="replace").splitlines(), 1):
        file, _, rest = line.partition("\t")
        path, wnid = f"{root}val/images/{file}", rest.partition("\t")[0]
        if path not in tree.files or wnid not in known:
            raise UserError(f"{tree.path}: {MARK} line {number} names {file!r} of class {wnid!r}, which is not there; "
                            "get tiny-imagenet-200.zip again")  # fmt: skip
        found[path] = wnid
    if not found:
        raise UserError(f"{tree.path}: {MARK} names no images; get tiny-imagenet-200.zip again")
    return found


def _words(tree: Tree, root: str, wnids: list[str]) -> list[str]:
    """Readable class names that stay unique: the wnid and the first word for it."""
    words: dict[str, str] = {}
    if f"{root}words.txt" in tree.files:
        lines = tree.read(f"{root}words.txt").decode(errors="replace").splitlines()
        words = {wnid: names.partition(",")[0] for wnid, _, names in (line.partition("\t") for line in lines)}
    return [f"{wnid} {words.get(wnid, '')}".strip() for wnid in wnids]


SOURCE = Source(
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    expected="tiny-imagenet-200.zip or its folder",
    recognises=recognises,
    load=load,
    downloads=(
        Download(
            name="tiny-imagenet-200.zip",
            urls=("http://cs231n.stanford.edu/tiny-imagenet-200.zip",),
            bytes=248100043,
            md5="90528d7ca1a48142e341f4ef8d21d0de",
        ),
    ),
)

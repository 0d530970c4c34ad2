"""Folder: any tree of images, `<split>/<class>/*` (train, and val and test if there are any) or flat `<class>/*`."""

from __future__ import annotations

import numpy as np

from trainers.encoded import Encoded, is_image, stored_shape
from trainers.manifest import UserError
from trainers.source import Raw, Request, Source
from trainers.tree import Tree

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}

Listing = dict[str, dict[str, str]]  # split -> path -> class


def recognises(tree: Tree) -> bool:
    return _listing(tree) is not None


def load(tree: Tree, request: Request) -> Raw:
    """The splits that are there. Raises UserError when a split has a class that train has not."""
    listing = _listing(tree)
    assert listing is not None
    classes = sorted(set(listing["train"].values()))
    if len(classes) < 2:
        raise UserError(f"{tree.path}: only one class, {classes[0]}; give at least two class folders")
    number = {name: index for index, name in enumerate(classes)}
    shape = stored_shape(tree, list(listing["train"]), request.shape)
    splits = {}
    for split, images in listing.items():
        if unknown := sorted(set(images.values()) - number.keys()):
            raise UserError(f"{tree.path}: {split} has a class {unknown[0]!r} that train has not; add or remove it")
        labels = np.array([number[name] for name in images.values()], dtype=np.int64)
        splits[split] = Encoded(tree=tree, names=list(images), labels=labels, shape=shape)
    return Raw(classes=tuple(classes), splits=splits)


def _listing(tree: Tree) -> Listing | None:
    """Each split's images and their classes, or None for another layout. Folders around the whole are looked past."""
    paths = {path: path.split("/") for path in tree.files if is_image(path)}
    deepest = max((len(parts) for parts in paths.values()), default=0)
    paths = {path: parts for path, parts in paths.items() if len(parts) == deepest}
    if deepest >= 3 and len({tuple(parts[:-3]) for parts in paths.values()}) == 1:
        names = {parts[-3].lower() for parts in paths.values()}
        if "train" in {SPLITS.get(name) for name in names} and names <= SPLITS.keys():
            return _grouped({path: (SPLITS[parts[-3].lower()], parts[-2]) for path, parts in paths.items()})
    if deepest >= 2 and len({tuple(parts[:-2]) for parts in paths.values()}) == 1:
        return _grouped({path: ("train", parts[-2]) for path, parts in paths.items()})
    return None


def _grouped(found: dict[str, tuple[str, str]]) -> Listing:
    listing: Listing = {}
    for path, (split, name) in found.items():
        listing.setdefault(split, {})[path] = name
    return listing


SOURCE = Source(
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    expected="a folder or archive of <split>/<class>/<image> or <class>/<image>",
    recognises=recognises,
    load=load,
)

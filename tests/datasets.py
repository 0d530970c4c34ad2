"""Small data sets in each source's official layout, for the tests of the data side."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from trainers import data as sources
from trainers.dataset import Dataset
from trainers.open import open_dataset

RANDOM = np.random.default_rng(0)


def pixels(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def png(height: int, width: int, channels: int = 3) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(height, width, channels).squeeze()).save(file, "PNG")
    return file.getvalue()


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes()


def mnist_files(train: int = 40, test: int = 10) -> dict[str, bytes]:
    files = {}
    for prefix, count in (("train", train), ("t10k", test)):
        files[f"MNIST/raw/{prefix}-images-idx3-ubyte"] = idx(pixels(count, 28, 28))
        files[f"MNIST/raw/{prefix}-labels-idx1-ubyte"] = idx(np.arange(count, dtype=np.uint8) % 10)
    return files


def cifar_files() -> dict[str, bytes]:
    def batch(count: int) -> bytes:
        rows = pixels(count, 3073)
        rows[:, 0] = np.arange(count) % 10
        return rows.tobytes()

    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    return {f"cifar-10-batches-bin/{name}": batch(20) for name in names}


def tiny_files() -> dict[str, bytes]:
    root, wnids = "tiny-imagenet-200", ["n01", "n02"]
    files = {f"{root}/wnids.txt": b"n02\nn01\n", f"{root}/words.txt": b"n01\tgoldfish, carp\nn02\tbullfrog\n"}
    for wnid in wnids:
        for number in range(6):
            files[f"{root}/train/{wnid}/images/{wnid}_{number}.JPEG"] = png(64, 64)
    files[f"{root}/val/images/val_0.JPEG"] = files[f"{root}/val/images/val_1.JPEG"] = png(64, 64)
    files[f"{root}/val/val_annotations.txt"] = b"val_0.JPEG\tn02\t0\t0\t1\t1\nval_1.JPEG\tn01\t0\t0\t1\t1\n"
    return files


def folder_files(sizes: tuple[int, ...] = (24,)) -> dict[str, bytes]:
    splits = {"train": 10, "test": 3}
    return {
        f"pets/{split}/{name}/{number}.png": png(sizes[number % len(sizes)], sizes[-1])
        for split, count in splits.items() for name in ("cat", "dog") for number in range(count)
    }  # fmt: skip


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, f"w:{path.suffix[1:].replace('tar', '')}") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


SAMPLES: dict[str, Callable[[Path], Path]] = {
    "mnist": lambda folder: write(folder / "mnist", mnist_files()),
    "cifar10": lambda folder: tarred(folder / "cifar-10-binary.tar.gz", cifar_files()),
    "tinyimagenet": lambda folder: zipped(folder / "tiny-imagenet-200.zip", tiny_files()),
    "folder": lambda folder: tarred(folder / "pets.tar.xz", folder_files()),
}
SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "tinyimagenet": (3, 64, 64), "folder": (3, 24, 24)}
PROCEDURAL = [name for name in sources.names() if sources.get(name).make is not None]


def opened(path: Path | str, folder: Path, shape: tuple[int, int, int] = (3, 32, 32), **options: object) -> Dataset:
    settings = {"num_classes": None, "cache": folder / "cache", "download": False, **options}
    return open_dataset(str(path), shape=shape, **settings)  # type: ignore[arg-type]

"""The contract of every data source, on small files in each one's official layout."""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import numpy as np
import pytest
from datasets import PROCEDURAL, SAMPLES, SHAPES, cifar_files, folder_files, mnist_files, opened, png, write, zipped

from trainers import data as sources
from trainers.dataset import byte_count
from trainers.manifest import UserError
from trainers.open import reopen
from trainers.tree import open_tree


def test_every_source_has_a_sample() -> None:
    assert sorted([*SAMPLES, *PROCEDURAL]) == sources.names()


@pytest.mark.parametrize("name", sources.names())
def test_contract(name: str, tmp_path: Path) -> None:
    path = SAMPLES[name](tmp_path) if name in SAMPLES else name
    shape = SHAPES.get(name, (3, 28, 28))
    found = opened(path, tmp_path, shape)
    assert found.info.name == name
    assert list(found.splits) == ["train", "val", "test"]
    assert len(found.mean) == len(found.std) == shape[0]
    assert len(set(found.classes)) == len(found.classes) >= 2
    for split in found.splits.values():
        assert len(split) == len(split.labels) > 0
        assert split.labels.dtype == np.int64 and 0 <= split.labels.min() <= split.labels.max() < len(found.classes)
        indices = np.array([len(split) - 1, 0, 0])
        images = split.read(indices)
        assert images.shape == (3, *split.shape) and images.dtype == np.uint8 and images.flags.c_contiguous
        assert images.std() > 0
        np.testing.assert_array_equal(images[1], images[2])
        for batch in split.stream([indices, indices[:1]]):
            np.testing.assert_array_equal(batch, images[: len(batch)])
    again = reopen(found.info, shape=shape, num_classes=len(found.classes), cache=tmp_path / "cache")
    assert again.info == found.info
    assert len(list((tmp_path / "cache" / "packs").iterdir())) == 1, "opened again, packed again"


@pytest.mark.parametrize("name", SAMPLES)
def test_one_source_recognises_a_tree(name: str, tmp_path: Path) -> None:
    tree = open_tree(SAMPLES[name](tmp_path), tmp_path)
    readers = [other for other in SAMPLES if sources.get(other).recognises(tree)]  # type: ignore[misc]
    assert readers == [name]


@pytest.mark.parametrize("name", sources.names())
def test_streamed_images_are_the_packed_ones(name: str, tmp_path: Path) -> None:
    path = SAMPLES[name](tmp_path) if name in SAMPLES else name
    shape = SHAPES.get(name, (3, 28, 28))
    streamed = opened(path, tmp_path, shape, pack_limit=0)
    assert not (tmp_path / "cache" / "packs").exists() or not list((tmp_path / "cache" / "packs").iterdir())
    packed = opened(path, tmp_path, shape)
    for split, stream in zip(packed.splits.values(), streamed.splits.values(), strict=True):
        indices = np.arange(len(split))
        np.testing.assert_array_equal(split.labels, stream.labels)
        np.testing.assert_array_equal(split.read(indices), np.concatenate(list(stream.stream(np.split(indices, [2])))))
    assert reopen(streamed.info, shape=shape, num_classes=None, cache=tmp_path / "cache").info == streamed.info


def test_pixels_survive(tmp_path: Path) -> None:
    files = cifar_files()
    found = opened(write(tmp_path / "extracted", files), tmp_path)
    rows = np.frombuffer(files["cifar-10-batches-bin/test_batch.bin"], np.uint8).reshape(-1, 3073)
    expected = rows[7, 1:].reshape(3, 32, 32).transpose(1, 2, 0)
    np.testing.assert_array_equal(found.splits["test"].read(np.array([7]))[0], expected)
    assert found.splits["test"].labels[7] == rows[7, 0]


def test_validation_is_a_tenth_of_each_class_and_follows_the_seed(tmp_path: Path) -> None:
    path = write(tmp_path / "mnist", mnist_files(train=200))
    first, other = (opened(path, tmp_path, (1, 28, 28), seed=seed) for seed in (0, 1))
    assert np.bincount(first.splits["val"].labels).tolist() == [2] * 10
    assert np.bincount(first.splits["train"].labels).tolist() == [18] * 10
    assert first.splits["val"].sha256 != other.splits["val"].sha256
    assert first.splits["test"].sha256 == other.splits["test"].sha256
    everything = {images.tobytes() for name in ("train", "val") for images in
                  first.splits[name].read(np.arange(len(first.splits[name])))}  # fmt: skip
    assert len(everything) == 200, "an image is in both or in neither"


def test_gzipped_idx_files(tmp_path: Path) -> None:
    files = mnist_files()
    plain = opened(write(tmp_path / "plain", files), tmp_path, (1, 28, 28))
    packed = {f"{name}.gz": gzip.compress(content) for name, content in files.items()}
    found = opened(write(tmp_path / "packed", packed), tmp_path, (1, 28, 28))
    assert found.info.splits == plain.info.splits


def test_flat_and_mixed_folders(tmp_path: Path) -> None:
    flat = {f"{name}/{number}.png": png(20, 30) for name in "ab" for number in range(20)}
    found = opened(write(tmp_path / "flat", flat), tmp_path, (3, 16, 16))
    assert {name: len(split) for name, split in found.splits.items()} == {"train": 32, "val": 4, "test": 4}
    assert found.splits["train"].shape == (20, 30, 3), "images of one size keep it"
    mixed = opened(zipped(tmp_path / "mixed.zip", folder_files((40, 50, 60))), tmp_path, (3, 16, 16))
    assert mixed.splits["train"].shape == (16, 16, 3)


def test_channels_follow_the_model(tmp_path: Path) -> None:
    grey = opened(SAMPLES["cifar10"](tmp_path), tmp_path, (1, 32, 32))
    assert grey.splits["train"].shape == (32, 32, 1) and len(grey.mean) == 1
    colour = opened(SAMPLES["mnist"](tmp_path), tmp_path, (3, 28, 28))
    images = colour.splits["train"].read(np.arange(4))
    assert images.shape == (4, 28, 28, 3) and (images == images[..., :1]).all()
    with pytest.raises(UserError, match="not 4"):
        opened(tmp_path / "mnist", tmp_path, (4, 28, 28))


def test_synthetic_uses_some_of_the_classes_and_follows_the_seed(tmp_path: Path) -> None:
    found = opened("synthetic:20", tmp_path, (3, 28, 28), num_classes=200)
    assert len(found.classes) == 200 and found.info.classes_used == 20
    assert np.bincount(found.splits["test"].labels).tolist() == [50] * 20
    assert opened("synthetic:20", tmp_path, (3, 28, 28), num_classes=200, seed=1).info.splits != found.info.splits
    for wrong in ("synthetic:1", "synthetic:201", "synthetic:x"):
        with pytest.raises(UserError, match="from 2 to 200"):
            opened(wrong, tmp_path, (3, 28, 28), num_classes=200)


def test_synthetic_bits_are_fixed(tmp_path: Path) -> None:
    found = opened("synthetic", tmp_path, (1, 28, 28), num_classes=10)
    assert found.splits["test"].sha256[:16] == "92700dd056aea172", "recorded seeds name other images now"


def test_reopen_refuses_other_images(tmp_path: Path) -> None:
    path = write(tmp_path / "mnist", mnist_files())
    found = opened(path, tmp_path, (1, 28, 28))
    write(path, mnist_files())
    with pytest.raises(UserError, match="not those of the training; give --calibration-data"):
        reopen(found.info, shape=(1, 28, 28), num_classes=10, cache=tmp_path / "cache")
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"--calibration-data PATH$"):
        reopen(found.info, shape=(1, 28, 28), num_classes=10, cache=tmp_path / "cache")


@pytest.mark.parametrize(("text", "count"), [("8G", 8 * 10**9), ("500M", 5 * 10**8), ("1.5k", 1500), ("7", 7)])
def test_byte_count(text: str, count: int) -> None:
    assert byte_count(text) == count
    with pytest.raises(ValueError, match="G8"):
        byte_count("G8")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "counts"),
    [
        ("mnist-10k", (1, 28, 28), {"train": 8099, "val": 901, "test": 1000}),
        ("cifar10-jpeg.tar.xz", (3, 32, 32), {"train": 45000, "val": 5000, "test": 10000}),
        ("tiny-imagenet-200.zip", (3, 224, 224), {"train": 16200, "val": 1800, "test": 4000}),
    ],
)
def test_real_data(
    name: str, shape: tuple[int, int, int], counts: dict[str, int], real_data: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    found = opened(real_data / name, tmp_path, shape)
    assert {name: len(split) for name, split in found.splits.items()} == counts
    # What a model can learn from at all: the classes' mean images differ by more than chance.
    split = found.splits["test"]
    images = split.read(np.arange(len(split))).astype(np.float32).mean(axis=(1, 2, 3))
    between = np.array([images[split.labels == label].mean() for label in np.unique(split.labels)]).std()
    shuffled = np.random.default_rng(0).permutation(split.labels)
    assert between > 1.3 * np.array([images[shuffled == label].mean() for label in np.unique(shuffled)]).std()
    start = time.perf_counter()
    assert opened(real_data / name, tmp_path, shape).info == found.info
    assert time.perf_counter() - start < 3
    assert ("official tinyimagenet file" in capsys.readouterr().err) == name.startswith("tiny")

"""What a user can get wrong, and what a disk can: one line each, nothing half written, packs mended."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from datasets import cifar_files, folder_files, mnist_files, opened, png, tarred, write, zipped

from trainers.manifest import UserError
from trainers.open import open_dataset


def refused(path: Path | str, folder: Path, shape: tuple[int, int, int] = (3, 32, 32)) -> str:
    """The one line that opening it ends with; no record may be left."""
    with pytest.raises(UserError) as caught:
        opened(path, folder, shape)
    assert "\n" not in str(caught.value) and "; " in str(caught.value)
    assert not list(folder.glob("cache/packs/*/record.json"))
    return str(caught.value)


def test_nothing_recognised(tmp_path: Path) -> None:
    assert "<split>/<class>/<image>" in refused(write(tmp_path / "x", {"notes.txt": b"hello"}), tmp_path)
    assert "neither a path nor a data source" in refused("cifra10", tmp_path)
    write(tmp_path, {"model.onnx": b"not an archive"})
    assert "neither a folder nor a zip" in refused(tmp_path / "model.onnx", tmp_path)
    assert "only one class" in refused(write(tmp_path / "one", {"a/1.png": png(8, 8)}), tmp_path)


def test_the_pickled_cifar_is_refused(tmp_path: Path) -> None:
    files = {f"cifar-10-batches-py/{name}": b"\x80\x04." for name in ("data_batch_1", "batches.meta")}
    assert "cifar-10-binary" in refused(tarred(tmp_path / "cifar-10-python.tar.gz", files), tmp_path)
    assert "cifar-10-binary" in refused(write(tmp_path / "extracted", files), tmp_path)


def test_a_folder_of_several_data_sets(tmp_path: Path) -> None:
    write(tmp_path / "all", {f"digits/{name}": content for name, content in mnist_files().items()})
    write(tmp_path / "all", {"README.md": b"a data set lies below"})
    assert "no known layout" in refused(tmp_path / "all", tmp_path, (1, 28, 28))
    write(tmp_path / "both", mnist_files() | cifar_files())
    assert "more than one data set (cifar10, mnist)" in refused(tmp_path / "both", tmp_path)
    write(tmp_path / "wrapped", {f"a/b/{name}": content for name, content in mnist_files().items()})
    assert opened(tmp_path / "wrapped", tmp_path, (1, 28, 28)).info.name == "mnist"


@pytest.mark.parametrize("change", ["magic", "short", "long", "count", "label", "missing"])
def test_damaged_idx(change: str, tmp_path: Path) -> None:
    files = mnist_files()
    images, labels = "MNIST/raw/train-images-idx3-ubyte", "MNIST/raw/train-labels-idx1-ubyte"
    if change == "magic":
        files[images] = b"\0\0\x0d\3" + files[images][4:]
    elif change == "short":
        files[images] = files[images][:-1]
    elif change == "long":
        files[images] += b"\0"
    elif change == "count":
        files[labels] = b"\0\0\x08\x01\0\0\0\x27" + files[labels][8:-1]
    elif change == "label":
        files[labels] = files[labels][:-1] + b"\x0a"
    else:
        del files[labels]
    assert "train" in refused(write(tmp_path / "mnist", files), tmp_path, (1, 28, 28))


def test_damaged_cifar(tmp_path: Path) -> None:
    files = cifar_files()
    files["cifar-10-batches-bin/data_batch_3.bin"] += b"\0"
    assert "data_batch_3.bin" in refused(write(tmp_path / "cifar", files), tmp_path)


@pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "a/../../evil.png"])
def test_members_outside_are_refused(name: str, tmp_path: Path) -> None:
    files = {**folder_files(), name: png(8, 8)}
    for path in (tarred(tmp_path / "evil.tar", files), zipped(tmp_path / "evil.zip", files)):
        assert "points outside the archive" in refused(path, tmp_path)


def test_links_are_refused(tmp_path: Path) -> None:
    path = tarred(tmp_path / "links.tar", folder_files())
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("pets/train/cat/link.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    assert "is a link" in refused(path, tmp_path)
    with zipfile.ZipFile(tmp_path / "links.zip", "w") as archive:
        info = zipfile.ZipInfo("train/cat/link.png")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    assert "is a link" in refused(tmp_path / "links.zip", tmp_path)


@pytest.mark.parametrize("end", ["tar", "tar.gz", "tar.xz", "zip"])
def test_truncated_archives(end: str, tmp_path: Path) -> None:
    make = zipped if end == "zip" else tarred
    path = make(tmp_path / f"pets.{end}", folder_files())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "get it again" in refused(path, tmp_path) or end == "zip"


def test_unreadable_images_are_counted(tmp_path: Path) -> None:
    files = folder_files()
    files["pets/train/cat/3.png"] = b"not an image"
    files["pets/train/dog/4.png"] = files["pets/train/dog/4.png"][:60]
    message = refused(write(tmp_path / "pets", files), tmp_path)
    assert "pets/train/cat/3.png (and 1 more)" in message


def test_a_class_that_train_lacks(tmp_path: Path) -> None:
    files = {**folder_files(), "pets/test/bird/1.png": png(24, 24)}
    assert "'bird'" in refused(write(tmp_path / "pets", files), tmp_path)


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "record"])
def test_a_damaged_pack_is_made_again(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "mnist", mnist_files())
    first = opened(path, tmp_path, (1, 28, 28))
    (folder,) = (tmp_path / "cache" / "packs").iterdir()
    del_or_change(folder, damage)
    again = opened(path, tmp_path, (1, 28, 28))
    assert again.info == first.info
    assert "packing again" in capsys.readouterr().err
    np.testing.assert_array_equal(again.splits["train"].read(np.arange(9)), first.splits["train"].read(np.arange(9)))


def del_or_change(folder: Path, damage: str) -> None:
    file = folder / ("record.json" if damage == "record" else "train.npy")
    content = file.read_bytes()
    file.unlink()  # the first data set still maps the old file
    if damage == "flip":
        file.write_bytes(content[:-5] + bytes((content[-5] ^ 1,)) + content[-4:])
    elif damage in ("truncate", "record"):
        file.write_bytes(content[:-20])


def test_a_file_that_changed_is_packed_again(tmp_path: Path) -> None:
    path = tmp_path / "mnist"
    first = opened(write(path, mnist_files()), tmp_path, (1, 28, 28))
    assert opened(write(path, mnist_files()), tmp_path, (1, 28, 28)).info.splits != first.info.splits


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    path = write(tmp_path / "mnist", mnist_files())
    with pytest.raises(UserError, match="--cache DIR"):
        open_dataset(str(path), shape=(1, 28, 28), num_classes=None, cache=tmp_path / "cache")


def test_a_sixteen_bit_image_keeps_its_range(tmp_path: Path) -> None:
    from PIL import Image

    from trainers.encoded import decode

    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), 0x8000, dtype=np.uint16)).save(file, "PNG")
    assert decode(file.getvalue(), (8, 8, 1)).mean() == 0x80

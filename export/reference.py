"""The model's own answers: the logits that artifacts are compared with, computed once and kept by hash.

They are PyTorch's; for an ONNX file that somebody else exported, those of that file in ONNX Runtime.

`reference.safetensors` holds the first 64 verification images with the checkpoint's logits and labels, so that a
worker without torch can check the outputs that it times.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from export import pixels
from export.activations import swap_gelu
from trainers import external
from trainers.checkpoint import Checkpoint, load_model
from trainers.cli import track
from trainers.dataset import Split
from trainers.manifest import File, UserError, atomic
from trainers.spec import Preprocess

if TYPE_CHECKING:
    import torch
    from torch import nn

    from export.foreign import ModelFile

REFERENCE = "reference.safetensors"
REFERENCE_IMAGES = 64
LARGEST_BATCH, SMALLEST_BATCH = 32, 8  # images a run; the exporters traced another batch
PIXELS = 32 * 64 * 64  # a run: beyond, activations outgrow a CPU's caches, and 224-pixel images take twice as long
SUBSET_SEED = 0
KEPT_BYTES = 256_000_000  # of prepared pixels: one command judges several forms on the same images
_kept_pixels: defaultdict[tuple[str, Preprocess], dict[int, np.ndarray]] = defaultdict(dict)


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The images that every variant of a checkpoint is judged on."""

    split: Split
    indices: np.ndarray
    preprocess: Preprocess

    @property
    def labels(self) -> np.ndarray:
        return self.split.labels[self.indices]

    @property
    def batch(self) -> int:
        """How many of them are run at once."""
        return max(SMALLEST_BATCH, min(LARGEST_BATCH, PIXELS // math.prod(self.preprocess.size)))

    def apart(self, others: Verification) -> tuple[Verification, np.ndarray]:
        """These images but for the `others`, and the rows of all of them with the others last."""
        among, rows = np.isin(self.indices, others.indices), np.arange(len(self.indices))
        return replace(self, indices=self.indices[~among]), np.concatenate([rows[~among], rows[among]])

    @property
    def key(self) -> str:
        """A digest of which images these are and how they are prepared."""
        digest = hashlib.sha256(self.split.sha256.encode())
        digest.update(self.indices.tobytes())
        digest.update(f"{self.preprocess!r} 8 bits, halves up".encode())
        return digest.hexdigest()


def choose_images(split: Split, preprocess: Preprocess, count: int | None) -> Verification:
    """A fixed, seeded subset of `count` images (None: all), in the split's order."""
    if count is None or count >= len(split):
        indices = np.arange(len(split))
    else:
        indices = np.sort(np.random.default_rng(SUBSET_SEED).permutation(len(split))[:count])
    if len(indices) == 0:
        raise UserError(f"the {split.name} split holds no image to verify on; give --calibration-data with one")
    return Verification(split=split, indices=indices, preprocess=preprocess)


def images(verification: Verification, title: str = "verify", dtype: str = "float32") -> Iterator[np.ndarray]:
    """The chosen images as (N, C, H, W) batches with a progress bar: normalised float32, or the uint8 pixels of these.

    Pixels are whole numbers in both, also where images are scaled. Raises UserError when the preprocessing gives
    values that are not finite.
    """
    count = -(-len(verification.indices) // verification.batch)
    for whole in track(_pixels(verification), title, total=count):
        yield whole if dtype == "uint8" else pixels.normalise(whole, verification.preprocess)


def prepare(verification: Verification) -> None:
    """Prepare the images for `images` to find in memory, where they all fit there. Raises what that does."""
    if len(verification.indices) * math.prod((3, *verification.preprocess.size)) <= KEPT_BYTES:
        for _ in _pixels(verification):
            pass


def _pixels(verification: Verification) -> Iterator[np.ndarray]:
    """Batches of prepared pixels; those of earlier calls that are kept in memory are not prepared again."""
    import torch

    from trainers.batches import evaluation_batches

    chosen, size, preprocess = verification.indices, verification.batch, verification.preprocess
    known = _kept_pixels[verification.split.sha256, preprocess]
    if all(index in known for index in chosen.tolist()):
        yield from (np.stack([known[index] for index in chosen[start : start + size].tolist()])
                    for start in range(0, len(chosen), size))  # fmt: skip
        return
    batches = evaluation_batches(verification.split, preprocess, size, torch.device("cpu"), chosen)
    for start, (batch, _) in zip(range(0, len(chosen), size), batches, strict=True):
        prepared = np.ascontiguousarray(batch.numpy())
        if not np.isfinite(prepared).all():
            raise UserError("the preprocessed images are not finite; check the mean and std they are normalised with")
        whole = pixels.to_pixels(prepared, preprocess)
        if sum(map(len, _kept_pixels.values())) * whole[0].nbytes < KEPT_BYTES:
            known.update(zip(chosen[start : start + size].tolist(), whole, strict=True))
        yield whole


def logits(checkpoint: Checkpoint, source: Path, folder: Path, gelu: str, verification: Verification) -> np.ndarray:
    """The checkpoint's logits (N, classes) with this activation; kept in `folder` under a name made of all inputs."""

    def compute() -> np.ndarray:
        import torch

        module = swap_gelu(load_model(checkpoint, source), gelu)
        # Channels last is about twice as fast on a CPU, in the same fp32; not every module of the user's own takes it.
        layout = torch.channels_last if checkpoint.recipe.channels_last else torch.contiguous_format
        return _run(module, verification, layout, f"PyTorch, gelu {gelu}")

    code = external.fingerprint(checkpoint.model)  # of the user's own, which can change beside the same weights
    inputs = " ".join(filter(None, (checkpoint.weights.sha256, gelu, verification.key, code)))
    return _kept(folder, inputs, compute)


def file_logits(file: ModelFile, sha256: str, folder: Path, verification: Verification) -> np.ndarray:
    """An ONNX file's logits (N, classes) in ONNX Runtime; kept in `folder` like PyTorch's."""
    from export import engines, parity

    return _kept(
        folder,
        " ".join(filter(None, (sha256, file.data_sha256, parity.engine(), verification.key))),
        lambda: parity.run(engines.load(file.path), images(verification, title=file.path.name), file.batch)[0],
    )


def _kept(folder: Path, inputs: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The logits in `folder` that these inputs gave before, or else computed and left there."""
    from safetensors.numpy import load_file, save_file

    path = folder / "logits" / f"{hashlib.sha256(inputs.encode()).hexdigest()[:24]}.safetensors"
    if path.is_file():
        kept: np.ndarray = load_file(path)["logits"]
        return kept
    computed = compute()
    with atomic(path) as temporary:
        save_file({"logits": computed}, temporary)
    return computed


def _run(module: nn.Module, verification: Verification, layout: torch.memory_format, title: str) -> np.ndarray:
    import torch

    module = module.eval().to(memory_format=layout)
    with torch.inference_mode():
        outputs = [
            module(torch.from_numpy(batch).contiguous(memory_format=layout)).numpy()
            for batch in images(verification, title=title)
        ]
    return np.concatenate(outputs)


def write_reference(
    folder: Path, split: Split, preprocess: Preprocess, answers: Callable[[Verification], np.ndarray]
) -> File:
    """Leave `reference.safetensors` in `folder`; one of the same images and answers stays as it is.

    Another number of threads gives logits that differ in their last bits; records name the file by its hash.
    """
    from safetensors.numpy import save_file

    first = choose_images(split, preprocess, REFERENCE_IMAGES)
    tensors = {
        "images": np.concatenate(list(images(first, title="reference"))),
        "logits": answers(first),
        "labels": first.labels.astype(np.int64),
    }
    path = folder / REFERENCE
    if not _holds(path, tensors):
        with atomic(path) as temporary:
            save_file(tensors, temporary)
    return File.of(path)


def _holds(path: Path, tensors: dict[str, np.ndarray]) -> bool:
    """Whether the file has these tensors, but for rounding."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        found = load_file(path) if path.is_file() else {}
    except SafetensorError:
        return False
    return found.keys() == tensors.keys() and all(
        found[name].shape == value.shape and np.allclose(found[name], value, rtol=1e-5, atol=1e-5)
        for name, value in tensors.items()
    )

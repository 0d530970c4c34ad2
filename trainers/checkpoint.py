"""Checkpoint: trained weights and the record that says what they are.

`checkpoint.safetensors` holds the weights of the plain module (never a compiled one) and nothing else: no time, no
path, so equal weights are equal bytes. `checkpoint.json` is written after it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from trainers import models
from trainers.dataset import DataInfo
from trainers.manifest import Environment, File, Record, Struct, UserError, atomic, link_or_copy, sha256
from trainers.qat import prepare
from trainers.spec import FakeQuantization, Option, Preprocess, Recipe

if TYPE_CHECKING:
    from torch import Tensor, nn

NAME = "checkpoint"


class Metrics(Struct, frozen=True, kw_only=True):
    """What training reached; accuracies are percentages on the split named."""

    split: str
    images: int
    loss: float
    top1: float
    top5: float
    train_loss: float
    images_per_second: float
    peak_memory_bytes: int


class Point(Struct, frozen=True, kw_only=True):
    """A point of the training curve: accuracies in percent after so many steps and seconds of training."""

    step: int
    seconds: float
    size: int  # pixels: height of the images trained on
    train_loss: float
    test_loss: float
    test_top1: float


class Quantization(Struct, frozen=True, kw_only=True):
    """What makes a checkpoint one of `--qat`: its weights are those of the module prepared with these settings."""

    settings: FakeQuantization
    origin: str  # sha256 of the fp32 weights it started from, kept beside it as checkpoint-<sha8>


class Checkpoint(Record, frozen=True, kw_only=True):
    """Weights, and everything needed to use them again."""

    SCHEMA: ClassVar[int] = 2  # 2: recipes with image sizes and averaged weights; `curve`

    model: str
    options: dict[str, Option]
    parameters: int
    input_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    preprocess: Preprocess
    data: DataInfo
    recipe: Recipe
    epochs: int
    steps: int
    seconds: float
    metrics: Metrics | None  # None: not trained here, so not measured
    files: tuple[File, ...]
    environment: Environment
    curve: tuple[Point, ...] = ()
    started_from: File | None = None  # the weights that training began with, or that were taken as they are
    qat: Quantization | None = None
    processes: int = 1  # that trained it together
    provenance: Literal["trained", "pretrained", "file", "factory", "random"] = "trained"  # where its weights are from
    command: str = ""  # that made it

    @property
    def weights(self) -> File:
        """The safetensors file."""
        return self.files[0]


def folder_name(name: str) -> str:
    """A model's name as a safe folder name of letters, digits, dot, dash and underscore.

    `FILE.py:FACTORY` becomes FACTORY. Raises UserError when nothing is left of it.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", re.sub(r".*\.py:", "", name)).strip("-.")
    if not safe or len(safe) > 100:
        raise UserError(f"{name!r} makes no usable folder name; give --name with letters and digits")
    return safe


def write_weights(state: dict[str, Tensor], path: Path) -> File:
    """Write a state dict as safetensors, atomically. Raises UserError or OSError; an old file then still stands."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic(path) as temporary:
        try:
            save_file(_apart(state), temporary)
        except SafetensorError as error:  # what a full disk is called there
            raise UserError(f"{path}: cannot be written ({error}); make room, then go on with --resume") from None
    return File.of(path)


def _apart(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, of which no two share memory: tied weights are written once a name."""
    apart, seen = {}, set()
    for name, tensor in state.items():
        plain = tensor.detach().cpu().contiguous()
        memory = plain.untyped_storage().data_ptr()
        apart[name] = plain.clone() if memory in seen else plain
        seen.add(memory)
    return apart


def keep_previous(folder: Path, name: str = NAME) -> Path | None:
    """Give the checkpoint in `folder` the name `checkpoint-<sha8>` before another replaces it."""
    weights, record = folder / f"{name}.safetensors", folder / f"{name}.json"
    if not (weights.is_file() and record.is_file()):
        return None
    try:
        old = Checkpoint.load(record)
    except UserError:
        return None  # a broken record vouches for nothing
    digest = sha256(weights)
    if digest != old.weights.sha256:
        return None
    return keep(old, weights, folder)


def keep(record: Checkpoint, weights: Path, folder: Path) -> Path:
    """Give a checkpoint a second name in `folder`, `checkpoint-<sha8>`, that no later training replaces."""
    import msgspec

    kept = folder / f"{NAME}-{record.weights.sha256[:8]}.safetensors"
    link_or_copy(weights, kept)
    msgspec.structs.replace(record, files=(File.of(kept),)).save(kept.with_suffix(".json"))
    return kept


def origin(record: Checkpoint, folder: Path) -> Checkpoint:
    """The fp32 checkpoint that a `--qat` one started from; any other is its own.

    Raises UserError when it no longer lies beside it.
    """
    if record.qat is None:
        return record
    path = folder / f"{NAME}-{record.qat.origin[:8]}.json"
    found = Checkpoint.load(path)
    if found.weights.sha256 != record.qat.origin:
        raise UserError(f"{path} is not the checkpoint that the training with --qat started from; train again")
    return found


def build(record: Checkpoint) -> nn.Module:
    """The checkpoint's module with fresh weights; under `torch.device("meta")` it has shapes only."""
    spec = models.get(record.model)
    return spec.build(num_classes=len(record.classes), input_shape=record.input_shape, **record.options)


def load_model(record: Checkpoint, folder: Path) -> nn.Module:
    """Build the checkpoint's module in eval mode on the CPU, with its weights; hash and shapes are checked.

    That of a `--qat` checkpoint is fake-quantized.

    Raises UserError when the file is not the one recorded or does not fit the model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = record.weights.verify(folder)
    module = build(record)
    if record.qat is not None:
        module = prepare(module, record.input_shape, record.qat.settings)
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file ({error}); train again") from None
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(f"{path} does not fit {record.model} {record.options}: {first}; train again") from None
    return module.eval()

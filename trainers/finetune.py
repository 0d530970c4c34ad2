"""`python -m trainers NAME --qat`: go on from a checkpoint with fake quantization, into a folder of its own."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from trainers import external, models, qat
from trainers.checkpoint import NAME, Checkpoint, Quantization, folder_name, keep, load_model
from trainers.cli import choose
from trainers.dataset import Dataset, byte_count
from trainers.manifest import UserError
from trainers.open import open_dataset, reopen
from trainers.spec import FakeQuantization, ModelSpec, Recipe, parse
from trainers.train import Job, pick_device, say, train

SLOWER = 10  # the fine-tuning's rate is this part of the training's
# A traced module is computed as it was traced: fp32, operator by operator, at one image size.
FIXED: dict[str, Any] = {
    "precision": "fp32", "compile": False, "channels_last": False, "rewrites": "none", "sizes": None, "ema": 0.0,
    "init": "default",
}  # fmt: skip


def quantized(arguments: argparse.Namespace, settings: Mapping[str, str]) -> tuple[Checkpoint, Path]:
    """Fine-tune as the arguments say; returns the new checkpoint and its folder. The old one stays as it was.

    Raises UserError when there is no fp32 checkpoint, torchao is missing, or a setting cannot be had.
    """
    qat.check_installed()
    device = pick_device(arguments.device)
    source = arguments.artifacts / folder_name(external.allow(arguments.model))
    record = _origin(source, arguments)
    spec = models.get(record.model)
    how, recipe = configure(spec, record, settings)
    data = _data(record, arguments)
    folder = arguments.artifacts / folder_name(arguments.name or f"{source.name}{qat.SUFFIX}")
    if folder.resolve() == source.resolve():
        raise UserError(f"--name {arguments.name}: the checkpoint to start from lies there; give another name")
    job = Job(
        model=record.model,
        options=record.options,
        recipe=recipe,
        input_shape=record.input_shape,
        qat=Quantization(settings=how, origin=record.weights.sha256),
        start=lambda: qat.prepare(load_model(record, source), record.input_shape, how),
    )
    before = f"top-1 {record.metrics.top1:.2f}%" if record.metrics else "accuracy not measured"
    say(f"{source / NAME}.safetensors, {before}, on {data.info.name}, fake-quantized to int8, {device}")
    keep(record, record.weights.verify(source), folder)
    return train(job, spec, data, device, folder, resume=arguments.resume), folder


def configure(spec: ModelSpec, record: Checkpoint, settings: Mapping[str, str]) -> tuple[FakeQuantization, Recipe]:
    """The quantizer's settings and the recipe: the checkpoint's own, a tenth of its rate, one epoch, a short warm-up.

    Raises UserError on a setting that is unknown, impossible, or the checkpoint's to decide.
    """
    base = msgspec.structs.replace(
        record.recipe, epochs=1, steps=None, lr=record.recipe.lr / SLOWER, schedule="cosine", warmup=0.1, **FIXED
    )
    own = FakeQuantization.__struct_fields__
    for key in settings:
        choose(key, [*own, *Recipe.__struct_fields__, *record.options], "setting")
        if key in record.options:
            raise UserError(f"{key} is the checkpoint's: --qat goes on with {key}={record.options[key]}; leave it out")
    _, recipe = spec.configure({key: text for key, text in settings.items() if key not in own}, base)
    for key, value in FIXED.items():
        if getattr(recipe, key) != value:
            raise UserError(f"--qat trains with {key}={value}, not {getattr(recipe, key)}; leave {key} out")
    try:
        chosen = {key: parse(text) for key, text in settings.items() if key in own}
        return msgspec.convert(chosen, FakeQuantization, strict=True), recipe
    except msgspec.ValidationError as error:
        raise UserError(f"--set: {error}; give a value of that type") from None


def _origin(source: Path, arguments: argparse.Namespace) -> Checkpoint:
    path = source / f"{NAME}.json"
    if not path.is_file():
        raise UserError(
            f"--qat goes on from a checkpoint, and there is none in {source}; make one with: "
            f"python -m trainers {arguments.model}"
        )
    record = Checkpoint.load(path)
    if record.qat is not None:
        raise UserError(f"{path} is a --qat checkpoint already; name the fp32 one that it came from")
    return record


def _data(record: Checkpoint, arguments: argparse.Namespace) -> Dataset:
    """The images the checkpoint was trained on, or those of `--data`, prepared as the checkpoint wants them."""
    shape, count = record.input_shape, len(record.classes)
    if arguments.data is None:
        data = reopen(record.data, shape=shape, num_classes=count, cache=arguments.cache)
    else:
        data = open_dataset(
            arguments.data,
            shape=shape,
            num_classes=count,
            seed=record.data.seed,
            cache=arguments.cache,
            pack_limit=byte_count(arguments.pack_limit) if arguments.pack_limit else None,
        )
    if data.classes != record.classes:
        raise UserError("--data: its classes are not the checkpoint's; give data of the same classes")
    return replace(data, mean=record.preprocess.mean, std=record.preprocess.std)

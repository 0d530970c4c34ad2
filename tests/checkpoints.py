"""Checkpoints that need no training: random weights, norms included, so that every tensor matters."""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch

from trainers import models, qat
from trainers.checkpoint import Checkpoint, Metrics, Quantization, keep, load_model, write_weights
from trainers.manifest import environment
from trainers.open import open_dataset
from trainers.spec import FakeQuantization, Preprocess


def random_checkpoint(artifacts: Path, model: str, **changes: object) -> Checkpoint:
    """artifacts/MODEL/checkpoint.safetensors and its record, on the embedded data."""
    spec = models.get(model)
    options = {**spec.options, **changes}
    shape = spec.shape(options)
    data = open_dataset("synthetic", shape=shape, num_classes=spec.num_classes)
    torch.manual_seed(0)
    module = spec.build(num_classes=spec.num_classes, input_shape=shape, **options)
    for part in module.modules():
        if isinstance(part, torch.nn.LayerNorm | torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.weight, 0.5, 1.5)
            torch.nn.init.normal_(part.bias, std=0.2)
    folder = artifacts / model
    record = Checkpoint(
        model=model, options=options, parameters=sum(p.numel() for p in module.parameters()), input_shape=shape,
        classes=data.classes, data=data.info, recipe=spec.recipe("synthetic"), epochs=0, steps=0, seconds=0.0,
        preprocess=Preprocess(size=shape[1:], resize=min(shape[1:]), mean=data.mean, std=data.std),
        metrics=Metrics(
            split="test", images=0, loss=0.0, top1=0.0, top5=0.0, train_loss=0.0, images_per_second=0.0,
            peak_memory_bytes=0,
        ),
        files=(write_weights(module.state_dict(), folder / "checkpoint.safetensors"),), environment=environment(),
    )  # fmt: skip
    record.save(folder / "checkpoint.json")
    return record


def fake_quantized_checkpoint(artifacts: Path, model: str, **changes: object) -> Checkpoint:
    """The same, prepared for int8: its ranges are those of one batch."""
    plain, folder = random_checkpoint(artifacts, model, **changes), artifacts / model
    keep(plain, folder / "checkpoint.safetensors", folder)
    how = Quantization(settings=FakeQuantization(), origin=plain.weights.sha256)
    module = qat.prepare(load_model(plain, folder), plain.input_shape, how.settings)
    with torch.no_grad():
        module(torch.randn(2, *plain.input_shape))
    files = (write_weights(module.state_dict(), folder / "checkpoint.safetensors"),)
    record = msgspec.structs.replace(plain, files=files, qat=how)
    record.save(folder / "checkpoint.json")
    return record

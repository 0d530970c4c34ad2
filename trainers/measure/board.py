"""Training curves as TensorBoard runs."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import msgspec

from trainers.checkpoint import Checkpoint
from trainers.measure.results import Learned, Result

EVENTS = "events.out.tfevents.*"


def write_curve(folder: Path, checkpoint: Checkpoint) -> None:
    """A training run's curve: losses, accuracy and image size by step and by its own seconds. An older one goes."""
    from torch.utils.tensorboard import SummaryWriter

    clear(folder)
    began = datetime.datetime.fromisoformat(checkpoint.environment.time).timestamp() - checkpoint.seconds
    with SummaryWriter(str(folder)) as writer:
        add: Any = writer.add_scalar
        for point in checkpoint.curve:
            at = point.step, began + point.seconds
            add("train/loss", point.train_loss, *at)
            add("test/loss", point.test_loss, *at)
            add("test/accuracy", point.test_top1, *at)
            add("train/pixels", point.size, *at)


def clear(folder: Path) -> None:
    """Remove an earlier run's events."""
    for old in folder.glob(EVENTS):
        old.unlink()


def write(folder: Path, result: Result, began: float) -> None:
    """One run: loss, accuracy, images/s and memory against steps, and by its wall time against seconds.

    `began` is the run's first moment as seconds since the epoch: two runs with the same one can be laid over each
    other. A run that was there is replaced.
    """
    from torch.utils.tensorboard import SummaryWriter

    if result.learned is None:
        return
    clear(folder)
    with SummaryWriter(str(folder)) as writer:
        switches = msgspec.json.format(msgspec.json.encode(result.switches)).decode()
        writer.add_text("configuration", f"{result.name}\n\n```json\n{switches}\n```", 0, began)
        _curve(writer, result.learned, began)


def _curve(writer: Any, learned: Learned, began: float) -> None:
    add = writer.add_scalar
    for point in learned.curve:
        at = point.step, began + point.seconds
        add("train/loss", point.loss, *at)
        add("train/accuracy", point.accuracy, *at)
        add("speed/images_per_second", point.images_per_second, *at)
        add("memory/megabytes", point.memory_bytes / 1e6, *at)
    last = learned.curve[-1]
    add("test/loss", learned.loss, last.step, began + last.seconds)
    add("test/accuracy", learned.top1, last.step, began + last.seconds)

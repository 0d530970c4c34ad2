"""The graph that training sees, as a file to look at: no stage runs it, and it has no record."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from export import graph
from export.exporters import Request, move, write_training
from trainers.checkpoint import folder_name, load_model

if TYPE_CHECKING:
    from export.job import Job

FOLDER = "training"


def write(job: Job, opset: int) -> Path:
    """Write `training/<model>-eager-training.onnx` with a free batch. Raises UserError with the exporter's reason."""
    name = f"{folder_name(job.checkpoint.model)}-eager-training"
    target = job.folder / FOLDER / f"{name}.onnx"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as scratch:
        path = Path(scratch) / target.name
        request = Request(input_shape=job.checkpoint.input_shape, batch=None, opset=opset)
        write_training(load_model(job.checkpoint, job.source), path, request)
        graph.finish(path, name, job.checkpoint)
        move(path, target)
    return target

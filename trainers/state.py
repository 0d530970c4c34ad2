"""TrainingState: everything an interrupted run needs to go on as if nothing had happened.

Tensors lie in `state-<step>.safetensors`, the rest in the record beside it, written last. The two newest are kept: a
run killed while it writes one still has the other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from trainers.checkpoint import Point, Quantization, write_weights
from trainers.dataset import DataInfo
from trainers.distributed import ALONE, World
from trainers.manifest import File, Record, UserError
from trainers.spec import Option, Recipe

KEPT = 2


class TrainingState(Record, frozen=True, kw_only=True):
    """Where a run stands after `step` optimizer steps."""

    SCHEMA: ClassVar[int] = 2  # 2: recipes with image sizes and averaged weights; `leg`, `curve`

    model: str
    options: dict[str, Option]
    recipe: Recipe
    data: DataInfo
    step: int
    seen: int  # images of the current epoch
    seconds: float
    scaler: dict[str, float]
    leg: int = 0  # which of the recipe's image sizes is being trained at
    curve: tuple[Point, ...] = ()
    started_from: File | None = None
    input_shape: tuple[int, int, int] | None = None  # None in states from before these two
    num_classes: int | None = None
    qat: Quantization | None = None
    files: tuple[File, ...]


def save_state(folder: Path, record: dict[str, Any], tensors: dict[str, Tensor]) -> TrainingState:
    """Write the run's tensors and the random state; then drop all but the newest two."""
    tensors = tensors | {"random": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["random_cuda"] = torch.cuda.get_rng_state()
    path = folder / f"state-{record['step']:08d}.safetensors"
    state = TrainingState(files=(write_weights(tensors, path),), **record)
    state.save(path.with_suffix(".json"))
    for old in _records(folder)[KEPT:]:
        _remove(old)
    return state


def newest_state(folder: Path) -> tuple[TrainingState | None, list[str]]:
    """The newest state that is whole, and a line for each that is not."""
    complaints = []
    for path in _records(folder):
        try:
            state = TrainingState.load(path)
            state.files[0].verify(folder)
        except UserError as error:
            complaints.append(str(error))
            continue
        return state, complaints
    return None, complaints


def load_tensors(state: TrainingState, folder: Path, world: World = ALONE) -> dict[str, Tensor]:
    """The state's tensors, read by the writer; the random generators are set to where they stood."""
    from safetensors.torch import load

    tensors = load(world.shared_bytes((folder / state.files[0].path).read_bytes))
    torch.set_rng_state(tensors["random"])
    if "random_cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random_cuda"])
    return tensors


def clear_states(folder: Path) -> None:
    """Remove every state of a finished run."""
    for path in _records(folder):
        _remove(path)


def _records(folder: Path) -> list[Path]:
    """State records, newest first."""
    return sorted(folder.glob("state-*.json"), reverse=True)


def _remove(record: Path) -> None:
    record.unlink(missing_ok=True)  # the record first: a state without one does not exist
    record.with_suffix(".safetensors").unlink(missing_ok=True)

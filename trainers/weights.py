"""Weights: a state dict to start training from, read from the user's file and fitted to the model."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from trainers.manifest import File, UserError

PREFIXES = ("module.", "_orig_mod.", "model.")  # of DistributedDataParallel, torch.compile, and usual wrappers
SECONDS = 120  # of computing: a reader that takes longer has met a file that means harm
WAIT = 5 * SECONDS  # a busy machine gives it less than a whole core
OWN_MEMORY = 2_000_000_000  # bytes that reading costs by itself
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
COUNTERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


@dataclass(frozen=True)
class Weights:
    """Tensors by name as the file has them, and the file's name and hash."""

    file: File
    tensors: Mapping[str, Tensor]

    def num_classes(self, module: nn.Module) -> int | None:
        """How many classes the file was made for, where that is all in which it differs from the module; else None."""
        wanted = module.state_dict()
        found = _renamed(self.tensors, wanted, trial=True)
        other = [name for name in wanted if name in found and found[name].shape != wanted[name].shape]
        return len(found[other[0]]) if other and _head(other, found, wanted, None) else None

    def fit(self, module: nn.Module, num_classes: int | None, *, strict: bool = False) -> None:
        """Copy the weights into a module; a note on stderr says what was not taken as it is.

        The layer that gives the logits stays as it is when the file's was made for another number of classes. With
        `num_classes` None this is a trial, without notes, for which any number will do. Raises UserError with counts
        and the first names on any other difference, and with `strict` on this one too.
        """
        wanted = module.state_dict()
        trial = num_classes is None
        found = _renamed(self.tensors, wanted, trial)
        missing = [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
        unexpected = [name for name in found if name not in wanted]
        other = [name for name in wanted if name in found and found[name].shape != wanted[name].shape]
        head = _head(other, found, wanted, num_classes)
        if missing or unexpected or (other and (head is None or strict)):
            raise UserError(self._mismatch(found, wanted, missing, unexpected, other))
        if head is not None and not trial:
            note(f"{self.file.path} was made for {len(found[other[0]])} classes: {head} starts fresh")
        fitting = {name: tensor for name, tensor in found.items() if name not in other}
        module.load_state_dict(fitting, strict=False)

    def _mismatch(
        self, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], missing: list[str], unexpected: list[str],
        other: list[str],
    ) -> str:  # fmt: skip
        matched = len(wanted.keys() & found.keys()) - len(other)
        shapes = [f"{name} {_shape(found[name])} instead of {_shape(wanted[name])}" for name in other]
        parts = [
            f"{len(names)} {what} ({', '.join(names[:2])}{', …' if len(names) > 2 else ''})"
            for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
            if names
        ]
        return (
            f"{self.file.path} does not fit the model: {matched} of {len(wanted)} tensors match, {', '.join(parts)}; "
            "give weights of this very model"
        )


def read(path: Path) -> Weights:
    """Read .safetensors, .pt or .pth; a note on stderr says what else was in the file. Raises UserError."""
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise UserError(f"--weights {path}: not a .safetensors, .pt or .pth file; give one of these")
    if not path.is_file():
        raise UserError(f"--weights {path}: no such file; check the path")
    if path.suffix == ".safetensors":
        tensors = _loaded(path, path)
    else:
        with tempfile.TemporaryDirectory(prefix="weights-") as folder:
            rewritten = Path(folder) / "weights.safetensors"
            _convert(path, rewritten)
            tensors = _loaded(rewritten, path)
    for name, tensor in tensors.items():
        _check(path, name, tensor)
    return Weights(File.of(path), tensors)


def note(line: str) -> None:
    """A line on stderr about what was made of the file."""
    print(f"note: {line}", file=sys.stderr, flush=True)


def _convert(path: Path, target: Path) -> None:
    """Have `trainers.unpickle` rewrite a pickled state dict as safetensors. Raises UserError with its reason."""
    limit = OWN_MEMORY + 4 * path.stat().st_size
    command = [sys.executable, "-m", "trainers.unpickle", str(path.resolve()), str(target), str(limit), str(SECONDS)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(f"{path}: not read within {WAIT} s; give a .safetensors file") from None
    if done.returncode != 0:
        raise UserError(f"{path}: its reader ended with status {done.returncode}; give a .safetensors file")
    reply = json.loads(done.stdout)
    if "error" in reply:
        raise UserError(f"{path}: {reply['error']}")
    for line in reply["notes"]:
        note(f"{path.name}: {line}")


def _loaded(path: Path, named: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{named}: not a safetensors file, or truncated ({error}); give it whole") from None


def _check(path: Path, name: str, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPES + COUNTERS:
        raise UserError(f"{path}: {name} is {str(tensor.dtype).removeprefix('torch.')}; give weights in floating point")
    if tensor.dtype in DTYPES and not torch.isfinite(tensor).all():
        raise UserError(f"{path}: {name} holds NaN or infinity; give weights of a run that did not diverge")


def _renamed(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], trial: bool) -> dict[str, Tensor]:
    """The tensors without the prefixes of wrappers, as long as that makes more names fit, and a note on it."""
    found, removed = dict(tensors), ""
    while True:
        for prefix in PREFIXES:
            # An averaged model also counts its updates, outside the prefix.
            shorter = {name.removeprefix(prefix): value for name, value in found.items() if name != "n_averaged"}
            if any(name.startswith(prefix) for name in found) and _hits(shorter, wanted) >= _hits(found, wanted):
                break
        else:
            break
        found, removed = shorter, removed + prefix
    if removed and _hits(found, wanted) and not trial:
        note(f"names are taken without {removed!r}")
    return found if _hits(found, wanted) else dict(tensors)


def _hits(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> int:
    return len(found.keys() & wanted.keys())


def _head(
    other: list[str], found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], num_classes: int | None
) -> str | None:
    """The layer that all tensors of another shape belong to, if they differ in the number of classes alone."""
    layers = {name.rpartition(".")[0] for name in other}
    differ_in_rows = all(
        found[name].dim() > 0
        and found[name].shape[1:] == wanted[name].shape[1:]
        and num_classes in (None, len(wanted[name]))
        for name in other
    )
    return layers.pop() if len(layers) == 1 and differ_in_rows else None


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"

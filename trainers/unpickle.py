"""Read a .pt or .pth state dict and write it as safetensors, in a process of its own with bounded time and memory.

    python -m trainers.unpickle SOURCE TARGET BYTES SECONDS   -> {"notes": […]} or {"error": "…"} on stdout

Run by `trainers.weights`, never by hand. `torch.load(weights_only=True)` runs no code of the file, but the tensors that
it returns may still be sparse, larger than the memory behind them, or not tensors at all.
"""

from __future__ import annotations

import json
import pickle
import re
import resource
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.manifest import UserError

if TYPE_CHECKING:
    from torch import Tensor

# What training scripts call the state dict within what they save, the most telling first.
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "module", "network", "net", "weights", "params")
BROKEN = "it is not a PyTorch file of weights, or truncated; give it whole"
DEPTH = 4  # wrappers in wrappers; a mapping may hold itself
SAVE = "save the weights alone: torch.save(model.state_dict(), FILE)"


def convert(source: Path, target: Path) -> list[str]:
    """Rewrite a state dict as safetensors; returns notes on what was taken. Raises UserError."""
    from safetensors.torch import save_file

    tensors, notes = _unwrapped(_load(source))
    save_file({name: _dense(name, tensor) for name, tensor in tensors.items()}, target)
    return notes


def _load(source: Path) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL:? (\S+)", str(error))
        if found:
            raise UserError(f"it holds Python objects ({found[1]}), which are never run; {SAVE}") from None
        raise UserError(BROKEN) from None
    except RuntimeError as error:
        if "TorchScript" in str(error):
            raise UserError(f"it is a TorchScript program, not weights; {SAVE}") from None
        raise


def _unwrapped(found: Any) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict within what was saved, and a note where that was more."""
    import torch

    notes: list[str] = []
    path: list[str] = []
    while len(path) < DEPTH and isinstance(found, Mapping) and not _has_tensors(found):
        key = next((key for key in WRAPPERS if isinstance(found.get(key), Mapping)), None)
        if key is None:
            break
        path.append(key)
        found = found[key]
    if not isinstance(found, Mapping) or not _has_tensors(found):
        raise UserError(f"it holds {_kind(found)}, not a state dict; {SAVE}")
    if path:
        notes.append(f"the weights are its {'.'.join(path)!r}")
    wrong = next((key for key, value in found.items() if not isinstance(value, torch.Tensor)), None)
    if wrong is not None:
        raise UserError(f"its {str(wrong)[:80]!r} is {_kind(found[wrong])}, not a tensor; {SAVE}")
    if not all(isinstance(key, str) for key in found):
        raise UserError(f"its tensors have no names; {SAVE}")
    return dict(found), notes


def _has_tensors(found: Mapping[Any, Any]) -> bool:
    import torch

    return any(isinstance(value, torch.Tensor) for value in found.values())


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a mapping of {', '.join(str(key)[:40] for key in list(value)[:4]) or 'nothing'}"
    return f"a value of type {type(value).__name__}"


def _dense(name: str, tensor: Tensor) -> Tensor:
    """A contiguous copy of an ordinary tensor. Raises UserError on any other kind."""
    import torch

    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout != torch.strided or tensor.is_meta:
        what = "meta" if tensor.is_meta else str(tensor.layout).removeprefix("torch.")
        raise UserError(f"its {name!r} is a {type(tensor).__name__} of layout {what}, not a dense one; {SAVE}")
    if tensor.is_quantized:
        raise UserError(f"its {name!r} is quantized; give weights in floating point")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise UserError(f"its {name!r} claims {tuple(tensor.shape)} elements, more than the file holds; {SAVE}")
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())


def _reply(source: Path, target: Path) -> dict[str, Any]:
    """Whatever goes wrong is the answer: this is the process border."""
    try:
        return {"notes": convert(source, target)}
    except UserError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": "it needs more memory than its size allows; " + SAVE}
    except Exception as error:  # the reader meets whatever is in the file
        if "allocate memory" in str(error):
            return {"error": "it needs more memory than its size allows; " + SAVE}
        return {"error": BROKEN}


def main() -> None:
    source, target, size, seconds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    import torch  # noqa: F401 (its own memory is no part of the file's)

    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    print(json.dumps(_reply(source, target)))


if __name__ == "__main__":
    main()

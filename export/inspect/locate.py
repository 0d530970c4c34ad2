"""Which file a command line names: a path, a model's name or an artifact's name."""

from __future__ import annotations

from pathlib import Path

from export.activations import EXACT
from export.artifact import Artifact, find
from trainers.checkpoint import folder_name
from trainers.manifest import UserError

FOREIGN = {
    ".xml": "an OpenVINO model", ".engine": "a TensorRT engine", ".plan": "a TensorRT engine",
    ".safetensors": "weights without a graph", ".pt": "a PyTorch file", ".pt2": "a PyTorch program",
    ".pth": "a PyTorch file", ".ort": "an ONNX Runtime model", ".tflite": "a TensorFlow Lite model",
}  # fmt: skip


def locate(name: str, artifacts: Path) -> Path:
    """The ONNX file that `name` means: a path, a record, a model (its plain fp32 file) or an artifact.

    Raises UserError when there is none, or several of this name.
    """
    path = Path(name)
    if path.suffix in FOREIGN:
        raise UserError(f"{path} is {FOREIGN[path.suffix]}; give the .onnx file that it was made from")
    if path.suffix == ".json" and path.is_file():
        return locate(str(path.parent / Artifact.load(path).file.path), artifacts)
    if path.suffix == ".onnx" or path.is_file():
        return path
    own = artifacts / (folder_name(name) if ":" in name else name)
    folder = next((place for place in (own, path) if place.is_dir()), None)
    return _plainest(folder) if folder else _named(name, artifacts)


def is_recorded(path: Path) -> bool:
    """Whether a record lies beside the file."""
    return path.with_suffix(".json").is_file()


def plainness(record: Artifact) -> tuple[bool, bool, bool, str]:
    """By what the file that a model's name means is chosen from its fp32 files: the greatest.

    The model's own activations, nothing rewritten, by the exporter that was decided on, and then the newest.
    """
    variant, choice = record.variant, record.choice
    chosen = choice is None or choice.chosen == variant.exporter
    return variant.gelu == EXACT, not variant.rewrites and not variant.functions, chosen, record.environment.time


def _plainest(folder: Path) -> Path:
    """The plainest fp32 ONNX file made from the folder's current checkpoint."""
    made = [
        (plainness(found.record), found.path)
        for found in find(folder)
        if found.record and found.kind == "onnx" and found.record.variant.precision == "fp32" and not found.stale
    ]
    if not made:
        raise UserError(
            f"{folder} holds no fp32 ONNX file of its checkpoint; name a file, or make one with: "
            f"python -m export {folder.name}"
        )
    return max(made)[1]


def _named(name: str, artifacts: Path) -> Path:
    paths = sorted({*artifacts.glob("*/*.onnx"), *artifacts.glob("*/failed/*.onnx")})
    same = [path for path in paths if name in (path.stem, f"{path.parent.name}/{path.stem}")]
    if len(same) == 1:
        return same[0]
    if same:
        raise UserError(f"there are several files called {name}: {', '.join(map(str, same))}; give one's path")
    there = ", ".join(sorted({path.stem for path in paths})[:12])
    hint = f"there are: {there}" if there else "make one with: python -m export MODEL"
    raise UserError(f"no file, model or artifact {name!r} in {artifacts}; {hint}")

"""A folder that runs the recommended form on a machine without this project: the file, how to use it, a script."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

from export.artifact import Artifact, Found
from export.images import stored_shape
from runtime import backends, providers
from runtime.backends import openvino
from runtime.tuning import runner
from runtime.tuning.best import Best
from trainers.manifest import UserError, sha256, write_atomic

SCRIPT, MODEL, NEEDS = "run.py", "model.json", "requirements.txt"


def write(folder: Path, best: Best, home: Path) -> list[str]:
    """Fill `folder`, which is new or empty; what to tell the user. Raises UserError where the engine needs PyTorch."""
    if best.backend not in runner.ENGINES or best.options.get("provider") == "tensorrt":
        raise UserError(f"--bundle: {best.backend} needs more than a file and a script; search in those that do not: "
                        f"--engines {','.join(runner.ENGINES)}")  # fmt: skip
    record = Artifact.load((home / best.file.path).with_suffix(".json"))
    found = Found(path=home / best.file.path, record=record)
    folder.mkdir(parents=True, exist_ok=True)
    for file in record.files:
        shutil.copyfile(file.verify(home), folder / file.path)
    settings, brought = _native(folder, best, found) if best.backend == "native" else (_settings(best, found), {})
    record.save(folder / f"{found.name}.json")
    shutil.copyfile(runner.__file__, folder / SCRIPT)
    needs = [*_installed(best), f"numpy=={importlib.metadata.version('numpy')}",
             f"pillow=={importlib.metadata.version('pillow')}"]  # fmt: skip
    write_atomic(folder / NEEDS, ("\n".join(needs) + "\n").encode())
    write_atomic(folder / MODEL, (json.dumps(described(best, found, settings, brought), indent=1) + "\n").encode())
    return [f"bundle: {folder}; on the other machine: pip install -r {NEEDS} && python {SCRIPT} PICTURE"]


def _native(folder: Path, best: Best, found: Found) -> tuple[dict[str, Any], dict[str, str]]:
    """Bring the project's own kernels, and the program that they run; its settings, and the files' hashes."""
    import numpy as np

    from runtime.native import layout, library
    from runtime.native.lower import lower
    from runtime.native.program import POINTERS

    half = best.options.get("precision") == "bf16"
    threads = backends.cores(best.question.threads, best.options)
    image = layout.image(lower(found.path), _batch(found), threads, half=half)
    shutil.copyfile(library.path(), folder / runner.LIBRARY)
    np.savez(folder / runner.PROGRAM, memory=image.memory, ops=image.ops)
    needs = [*library.NEEDED, *([library.BF16] if half else [])]
    settings = {"threads": image.threads, "logits": image.logits, "pointers": POINTERS,
                "input": library.Op.source.offset, "needs": needs}  # fmt: skip
    return settings, {name: sha256(folder / name) for name in (runner.LIBRARY, runner.PROGRAM)}


def _batch(found: Found) -> int:
    assert found.record is not None, "what was recommended has a record"
    return found.record.inputs[0].shape[0] or 1


def described(best: Best, found: Found, settings: dict[str, Any], brought: dict[str, str]) -> dict[str, Any]:
    """model.json: everything that the script has to know."""
    record = found.record
    assert record is not None, "what was recommended has a record"
    preprocess, (_, channels, *_) = record.preprocess, record.inputs[0].shape
    assert channels is not None, "only the batch size of an artifact is free"
    _, *scaled = stored_shape(channels, preprocess)
    return {
        "file": record.file.path, "sha256": {file.path: file.sha256 for file in record.files} | brought,
        "engine": best.backend, "settings": settings, "batch": _batch(found),
        "prepare": {
            "mode": "L" if channels == 1 else "RGB", "scaled": scaled, "size": preprocess.size,
            "mean": preprocess.mean, "std": preprocess.std, "raw": record.variant.input_dtype == "uint8",
        },
        "classes": record.classes,
    }  # fmt: skip


def _settings(best: Best, found: Found) -> dict[str, Any]:
    """What the engine was set to when it was measured."""
    threads, options = best.question.threads, best.options
    if best.backend == "openvino":
        return openvino.settings(openvino.arithmetic(found, options), threads, {**options, "cache": "off"})
    precision = providers.precision(found)
    # A graph of CUDA replays on buffers that were bound to it, which a plain call has not.
    name, set_to = providers.own(best.question.device, {**options, "cudagraph": "off"})
    return {
        "threads": backends.cores(threads, options), "graph": providers.LEVELS[options.get("graph", precision.graph)],
        "spinning": "0" if options.get("spinning") == "off" else "1", "disabled": list(precision.disabled),
        "providers": [[name, set_to]],
    }  # fmt: skip


def _installed(best: Best) -> list[str]:
    """The engine's package at the version that was measured; a CPU needs no onnxruntime-gpu, which has it inside."""
    if best.backend == "native":
        return []
    packages = best.environment.packages
    measured = next(name for name in backends.get(best.backend).packages if name in packages)
    name = "onnxruntime" if best.question.device == "cpu" and best.backend == "onnxruntime" else measured
    return [f"{name}=={packages[measured]}"]

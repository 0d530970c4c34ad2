"""This project's own kernels for int8 files on a CPU with AVX-512 VNNI: see runtime/native and docs/native.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from runtime.backend import BackendError
from runtime.backends import cores

if TYPE_CHECKING:
    import numpy as np

    from export.artifact import Artifact, Found
    from runtime.native.program import Program
    from runtime.native.steps import Lowered

formats = ("onnx",)
packages = ("fastform",)
options: Mapping[str, tuple[str, ...]] = {
    "precision": ("own", "bf16"),  # of what the file leaves in float; own: as the record says
    "cores": ("all", "1"),
}
computes = True


def unusable(device: str) -> str | None:
    from runtime.native import library

    return "runs on the CPU only; add --device cpu" if device != "cpu" else library.unusable()


class NativeSession:
    """One program; its input is read where it lies."""

    def __init__(self, program: Program, lowered: Lowered, attested: dict[str, str]) -> None:
        self.program, self.operators = program, lowered.operators
        self.steps = [(type(step).__name__, step.names) for step in lowered.steps]  # and not what they weigh
        self.build_s, self.attested = 0.0, attested
        self.step = program.run

    def bind(self, x: np.ndarray) -> None:
        self.program.bind(x.astype("float32", order="C"))

    def sync(self) -> None: ...

    def fetch(self) -> np.ndarray:
        return self.program.logits.copy()

    def close(self) -> None:
        self.program.close()


def takes(record: Artifact) -> bool:
    """Of the many forms of a model it is for one: no rows are made of the others."""
    return record.variant.precision == "int8" and record.variant.target == "cpu"


def load(artifact: Found, *, device: str, threads: int, batch: int, options: Mapping[str, str]) -> NativeSession:
    from runtime.native import layout, library
    from runtime.native.lower import lower
    from runtime.native.program import Program

    kernels = library.load()
    lowered = lower(artifact.path)
    half = options.get("precision") == "bf16"
    if half and not library.has_bf16():
        raise BackendError(f"precision=bf16 needs a processor with {library.BF16}")
    program = Program(layout.image(lowered, batch, cores(threads, options), half=half), kernels)
    attested = {"engine": "native", "steps": str(len(lowered.steps)), "threads": str(program.threads),
                "floats": "bf16" if half else "fp32"}  # fmt: skip
    return NativeSession(program, lowered, attested)

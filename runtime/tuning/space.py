"""What is tried: forms of a model, and settings of the engines that run them. Nothing is made or measured here.

The order is that of promise, so that a search that runs out of time has seen the likeliest first.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence

from msgspec.structs import replace

from export import rewrites
from export.activations import ACTIVATIONS, EXACT
from export.artifact import Artifact
from export.exporters import EXPORTERS, TORCH
from export.precision import OPENVINO, PRECISIONS, QAT, methods
from export.variant import Variant, usual_rewrites
from runtime import backends

Options = dict[str, str]

# Precisions and what they are placed for, by device.
PLACED: Mapping[str, tuple[tuple[str, str | None], ...]] = {
    "cpu": (("int8", OPENVINO), ("int8", "cpu"), ("bf16", None)),
    "cuda": (("fp16", None), ("int8", "tensorrt"), ("int8-fp16", "tensorrt"), ("fp8", "tensorrt")),
}
# Settings worth a try in an engine that is among the fastest; each is one change from its defaults.
SETTINGS: Mapping[str, Mapping[str, tuple[Options, ...]]] = {
    "cpu": {
        "onnxruntime": ({"cores": "1"}, {"spinning": "off"}, {"graph": "extended"}),
        "openvino": ({"precision": "bf16"}, {"cores": "1"}, {"hint": "throughput"}),
        "native": ({"precision": "bf16"}, {"cores": "1"}),
        "compiled": ({"mode": "max-autotune"},),
    },
    "cuda": {
        "onnxruntime": ({"cudagraph": "on"}, {"provider": "tensorrt"}),
        "compiled": ({"mode": "reduce-overhead"}, {"mode": "max-autotune"}),
    },
}
SLOW_TO_LOAD = ("aoti",)  # compiles for as long as all else takes; searched only where it is named


def first(plain: Variant, device: str) -> list[Variant]:
    """The forms that every search begins with; `plain` is the fp32 file."""
    if plain.precision == QAT:
        return [plain]
    placed = [_converted(plain, precision, target) for precision, target in PLACED[device]
              if target != OPENVINO or importlib.util.find_spec("nncf")]  # fmt: skip
    suited = rewrites.default("tensorrt" if device == "cuda" else "cpu")
    return [plain, *placed, replace(plain, rewrites=suited)]


def around(record: Artifact, *, has_gelu: bool, from_module: bool) -> Iterator[Variant]:
    """Forms one change away: the other exporter, other rewrites, other activations.

    A file that was not exported here (`from_module` false) keeps its graph and its activations.
    """
    form = record.variant
    if form.precision == QAT or form.exporter == TORCH:
        return
    if any(one.matched for one in record.rewrites):
        yield replace(form, rewrites=())
    elif form.precision == "fp32":
        yield replace(form, rewrites=tuple(rewrites.NAMES))
    if from_module:
        yield from (replace(form, exporter=name) for name in EXPORTERS if name != form.exporter)
    if from_module and has_gelu:
        yield from (replace(form, gelu=name) for name in ACTIVATIONS if name not in (EXACT, form.gelu))


def gentler(form: Variant) -> Iterator[Variant]:
    """Forms as fast that may lose less: the other ways to set activation ranges. `form` is that of a made file."""
    asked = form.calibration
    if asked is not None:
        yield from (replace(form, calibration=replace(asked, method=name, tried=()))
                    for name in methods(form.target) if name != asked.method)  # fmt: skip


def engines(device: str, asked: Sequence[str] | None) -> list[str]:
    """The engines to search in: those asked for, without such as compute nothing or cannot run here."""
    names = asked or [name for name in backends.names() if name not in SLOW_TO_LOAD]
    return [name for name in names if backends.get(name).computes and backends.get(name).unusable(device) is None]


def settings(backend: str, device: str) -> tuple[Options, ...]:
    """Settings of an engine that differ from its defaults."""
    return SETTINGS[device].get(backend, ())


def _converted(plain: Variant, precision: str, target: str | None) -> Variant:
    placed = target if target in PRECISIONS[precision].targets else None
    return replace(plain, precision=precision, target=placed, rewrites=usual_rewrites(precision, placed))

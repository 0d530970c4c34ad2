"""Which variants a command asks for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import product

from msgspec.structs import replace

from export.activations import ACTIVATIONS
from export.exporters import EXPORTERS, TORCH
from export.precision import CONVERTED, PRECISIONS, QAT, placements
from export.variant import ONNX, OPSET, Variant, usual_rewrites, within
from trainers.manifest import UserError


@dataclass(frozen=True, kw_only=True)
class Wish:
    """The command line's choices. `precisions` holds what is wanted besides fp32."""

    exporter: str = "auto"  # or one of EXPORTERS, torch, or both
    baseline: str = "dynamo"  # the exporter of what names none
    exporters: tuple[str, ...] = tuple(EXPORTERS)  # those that can write this model
    gelu: str = "exact"
    precisions: tuple[str, ...] = ()
    target: str = "cpu"
    beside: tuple[str, ...] = ()  # further targets of int8
    batch: int | None = None
    opset: int = OPSET
    input_dtype: str = "float32"
    rewrites: tuple[str, ...] | None = None  # None: the usual ones of each precision and target
    functions: bool = False
    all: bool = False
    grid: bool = False


def plan(wish: Wish, has_gelu: bool) -> list[Variant]:
    """The variants to make, in order: the torch artifact and the fp32 ONNX file come with every export.

    Raises UserError for a GELU choice where the model has none.
    """
    if wish.gelu != "exact" and not has_gelu:
        raise UserError(f"--gelu {wish.gelu}: this model has no GELU; leave --gelu out")
    if wish.grid:
        chosen = _grid(wish, has_gelu)
    elif wish.all:
        chosen = _one_at_a_time(wish, has_gelu)
    else:
        chosen = _asked(wish)
    baseline = replace(_onnx(wish), rewrites=(), functions=False)
    return list(dict.fromkeys([_torch("exact"), baseline, *chosen]))


def wants_gelu(wish: Wish) -> bool:
    """Whether the plan depends on the model having a GELU."""
    return wish.gelu != "exact" or wish.all or wish.grid


def plan_file(wish: Wish, asked_batch: int | None) -> list[Variant]:
    """The forms of an ONNX file: itself, and what is asked for besides.

    Raises UserError for a choice that its exporter has already made.
    """
    wrong = {
        f"--exporter {wish.exporter}": wish.exporter != Wish.exporter,  # the default
        f"--gelu {wish.gelu}": wish.gelu != "exact",
        "--functions": wish.functions,
        f"--batch {asked_batch}": asked_batch not in (None, wish.batch),
    }
    for flag, is_wrong in wrong.items():
        if is_wrong:
            raise UserError(f"{flag}: an ONNX file has been exported already; leave {flag.split()[0]} out")
    wish = dataclasses.replace(wish, exporter=ONNX)
    every = [_onnx(wish, ONNX, precision=name, target=target or "cpu") for name in CONVERTED
             for target in placements(name)]  # fmt: skip
    return list(dict.fromkeys([replace(_onnx(wish, ONNX), rewrites=()), *_asked(wish),
                               *(every if wish.all or wish.grid else [])]))  # fmt: skip


def plan_trained(wish: Wish, target: str | None) -> list[Variant]:
    """The one form of a checkpoint trained with `--qat`; `target` is what the command line named.

    Raises UserError for a choice that the training has already made.
    """
    row = PRECISIONS[QAT]
    wrong = {
        f"--exporter {wish.exporter}": wish.exporter not in ("auto", "dynamo"),
        f"--gelu {wish.gelu}": wish.gelu != "exact",
        f"--quantize {','.join(wish.precisions)}": any(name != QAT for name in wish.precisions),
        f"--target {target}": target not in (None, *row.targets),
        "--all": wish.all,
        "--grid": wish.grid,
    }
    for flag, is_wrong in wrong.items():
        if is_wrong:
            raise UserError(
                f"{flag}: this checkpoint was trained with --qat, so its one form is {QAT}, by dynamo, for "
                f"{row.targets[0]}; leave {flag.split()[0]} out, or export the fp32 checkpoint it came from"
            )
    return [_onnx(wish, precision=QAT, target=row.targets[0])]


def _converted(wish: Wish) -> tuple[str, ...]:
    """The precisions that can be made at the opset asked for; an ONNX file, and the default, may be raised."""
    raised = wish.exporter == ONNX or wish.opset == OPSET
    return tuple(name for name in CONVERTED if raised or wish.opset >= PRECISIONS[name].opset)


def _asked(wish: Wish) -> list[Variant]:
    for name in wish.precisions:
        if name in CONVERTED and name not in _converted(wish):
            raise UserError(f"--opset {wish.opset}: {name} needs opset {PRECISIONS[name].opset}; leave --opset out or "
                            "choose another precision")  # fmt: skip
    if QAT in wish.precisions:
        raise UserError(
            f"{QAT} is made of a checkpoint trained for it: python -m trainers NAME --qat, then "
            "python -m export NAME-qat"
        )
    exporters = {"both": wish.exporters, "auto": (wish.baseline,)}.get(wish.exporter, (wish.exporter,))
    if wish.exporter == TORCH:
        if wish.input_dtype != "float32":
            raise UserError("--exporter torch keeps PyTorch's float32 input; choose dynamo or eager for raw pixels")
        if wish.precisions:
            raise UserError("--exporter torch keeps PyTorch's fp32 weights; to quantize choose dynamo or eager")
        return [_torch(wish.gelu)]
    return [
        _onnx(wish, exporter, wish.gelu, precision, target)
        for exporter in exporters
        for precision in ("fp32", *wish.precisions)
        for target in (wish.target, *(wish.beside if precision == "int8" else ()))
    ]


def _one_at_a_time(wish: Wish, has_gelu: bool) -> list[Variant]:
    """From (baseline, exact, fp32) change one factor: exporter, GELU (in fp32 and int8), precision, target."""
    gelus = tuple(ACTIVATIONS) if has_gelu else ("exact",)
    chosen = [_onnx(wish, exporter) for exporter in wish.exporters]
    chosen += [_onnx(wish, gelu=gelu) for gelu in gelus]
    chosen += [_onnx(wish, precision=precision, target=wish.target) for precision in _converted(wish)]
    chosen += [_onnx(wish, gelu=gelu, precision="int8", target=wish.target) for gelu in gelus]
    chosen += [
        _onnx(wish, precision=name, target=target or "cpu") for name in _converted(wish) for target in placements(name)
    ]
    return chosen


def _grid(wish: Wish, has_gelu: bool) -> list[Variant]:
    """Every exporter with every GELU, precision and target."""
    gelus = tuple(ACTIVATIONS) if has_gelu else ("exact",)
    placed = [(name, target or "cpu") for name in _converted(wish) for target in placements(name)]
    return [_torch(gelu) for gelu in gelus] + [
        _onnx(wish, exporter, gelu, precision, target)
        for exporter, gelu, (precision, target) in product(wish.exporters, gelus, placed)
    ]


def _torch(gelu: str) -> Variant:
    return Variant(exporter=TORCH, gelu=gelu, opset=None)


def _onnx(
    wish: Wish, exporter: str | None = None, gelu: str = "exact", precision: str = "fp32", target: str = "cpu"
) -> Variant:
    targets = PRECISIONS[precision].targets
    placed = target if target in targets else next(iter(targets), None)  # some have one engine only
    asked = wish.rewrites if wish.rewrites is not None and precision != QAT else usual_rewrites(precision, placed)
    asked = within(asked, exporter or wish.baseline, wish.opset)
    return Variant(
        exporter=exporter or wish.baseline, gelu=gelu, precision=precision, target=placed, batch=wish.batch,
        opset=wish.opset, input_dtype=wish.input_dtype, functions=wish.functions, rewrites=asked,
    )  # fmt: skip

"""python -m runtime build: compile TensorRT engines for GPUs that are not here."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from trainers.cli import FAILED, OK, add_common, emit, positive
from trainers.manifest import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.engine import Engine, Order
    from runtime.targets import Target

SUMMARY = "compile TensorRT engines for GPUs that need not be here"
EXAMPLES = """\
examples:
  python -m runtime build artifacts/convnext/convnext-dynamo-exact-int8.onnx --arch sm86,sm120
  python -m runtime build resnet18 --arch sm89 --batch 8 --profile dynamic
"""
COLUMNS = ("artifact", "arch", "built", ">size", ">seconds")


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="MODEL|PATH", help="an ONNX file, or a model's folder under DIR: all of its")
    parser.add_argument("--arch", required=True, type=architectures, metavar="sm86,sm120",
                        help="the GPUs' architectures: sm80, sm86 Ampere; sm89 Ada; sm120 Blackwell")  # fmt: skip
    parser.add_argument("--batch", type=positive, default=1, metavar="N", help="images in a batch (default: 1)")
    parser.add_argument("--profile", choices=("static", "dynamic"), default="static",
                        help="static: batches of N only (default); dynamic: up to 64, tuned for N")  # fmt: skip
    parser.add_argument("--timeout", type=positive, default=600, metavar="S",
                        help="give an engine up that takes longer to compile (default: 600)")  # fmt: skip
    add_common(parser)


def architectures(text: str) -> tuple[str, ...]:
    """argparse type: comma-separated architectures, each once."""
    return tuple(dict.fromkeys(part.strip().lower() for part in text.split(",")))


def run(arguments: argparse.Namespace) -> int:
    """Compile each artifact for each architecture. Exit 1 when none was built.

    Raises UserError without TensorRT for RTX, or when the target has no ONNX file.
    """
    from importlib.metadata import version
    from importlib.util import find_spec

    from runtime import targets, trt
    from runtime.bench import memory_limit
    from runtime.engine import Order, make
    from trainers import manifest
    from trainers.cli import progress

    if find_spec(trt.MODULES["rtx"]) is None:
        raise UserError(f"build needs TensorRT for RTX; pip install {trt.INSTALL['rtx']}")
    memory = memory_limit(manifest.environment(), "cpu")
    found, _ = targets.resolve([arguments.target], arguments.artifacts, memory)
    orders = [
        Order(found=each.found, folder=_folder(each, arguments.artifacts), architecture=architecture,
              batch=arguments.batch, profile=arguments.profile)
        for each in found if each.found.kind == "onnx" for architecture in arguments.arch
    ]  # fmt: skip
    if not orders:
        raise UserError(f"{arguments.target} has no ONNX file; make one with: python -m export {arguments.target}")
    compiler = f"rtx {version(trt.INSTALL['rtx'])}"
    made: list[tuple[Order, Engine | str]] = []
    with progress() as bars:
        task = bars.add_task("compiling", total=len(orders))
        for order in orders:
            bars.update(task, description=f"{order.found.name} for {order.architecture}")
            made.append((order, make(order, compiler, timeout=arguments.timeout, memory_bytes=memory)))
            bars.advance(task)
    if arguments.json:
        emit({"schema": 1, "compiler": compiler, "engines": [_document(*each) for each in made]})
    _show(made, compiler, stderr=arguments.json)
    return OK if any(not isinstance(engine, str) for _, engine in made) else FAILED


def _folder(target: Target, artifacts: Path) -> Path:
    """Beside the model's artifacts; a file that nobody vouches for gets a folder of its own name."""
    from runtime.check import home

    path = target.found.path
    return (home(path) if target.found.record else artifacts / path.stem) / "engines"


def _document(order: Order, engine: Engine | str) -> dict[str, Any]:
    if isinstance(engine, str):
        return {"artifact": order.found.name, "architecture": order.architecture, "reason": engine}
    return {"artifact": order.found.name, "architecture": order.architecture, "path": str(order.path),
            "bytes": engine.file.bytes, "sha256": engine.file.sha256, "seconds": engine.seconds}  # fmt: skip


def _show(made: list[tuple[Order, Engine | str]], compiler: str, *, stderr: bool) -> None:
    """The table, and below it why some are not there and where the others are."""
    from trainers.cli import console, table

    table(f"Engines by {compiler}", COLUMNS, [_cells(*each) for each in made], stderr=stderr)
    for order, engine in made:
        if isinstance(engine, str):
            line = f"not built: {order.found.name} for {order.architecture}: {engine}"
            console(stderr).print(line, markup=False)
    for folder in dict.fromkeys(order.folder for order, engine in made if not isinstance(engine, str)):
        console(stderr).print(f"in {folder}", markup=False)


def _cells(order: Order, engine: Engine | str) -> tuple[str, ...]:
    from trainers.cli import megabytes

    if isinstance(engine, str):
        return order.found.name, order.architecture, "no", "-", "-"
    return (order.found.name, order.architecture, order.path.name, megabytes(engine.file.bytes),
            f"{engine.seconds:.1f}")  # fmt: skip

"""From a PyTorch module to a file. A row of EXPORTERS is a choice of `--exporter`; torch is imported on use."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.activations import swap_gelu
from export.artifact import Found
from export.quiet import quiet
from trainers import models
from trainers.cli import stop_if_interrupted
from trainers.manifest import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

INPUT, OUTPUT = "images", "logits"
TRACED_BATCH = 2  # dynamo takes a batch of 1 for a constant
LARGE = 1_900_000_000  # bytes: protobuf ends at 2 GiB; beyond this the weights lie in `<file>.data` beside the graph


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to write: `batch` None leaves the batch dimension free."""

    input_shape: tuple[int, int, int]
    batch: int | None
    opset: int


def dynamo(module: nn.Module, path: Path, request: Request) -> None:
    """Write ONNX through torch.export."""
    import torch

    program = torch.onnx.export(
        module,
        (_example(request),),
        dynamo=True,
        opset_version=request.opset,
        verbose=False,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=None if request.batch else ({0: torch.export.Dim("batch", min=1)},),
    )
    assert program is not None, "torch.onnx.export returns a program when it is given no file"
    program.save(path, external_data=_bytes(module) > LARGE)


def torchscript(module: nn.Module, path: Path, request: Request) -> None:
    """Write ONNX through TorchScript tracing."""
    _trace(module, path, request)


def _trace(module: nn.Module, path: Path, request: Request, **keywords: Any) -> None:
    """The call of the TorchScript exporter. Of a large model it leaves a file a tensor, which become one."""
    import onnx
    import torch

    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".trace-") as folder, _attention_in_parts():
        traced = Path(folder) / path.name
        torch.onnx.export(
            module,
            (_example(request),),
            str(traced),
            dynamo=False,
            opset_version=request.opset,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes=None if request.batch else {INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
            **keywords,
        )
        if _bytes(module) > LARGE:
            onnx.save(onnx.load(traced), path, save_as_external_data=True, location=data_path(path).name)
        else:
            traced.replace(path)


@contextlib.contextmanager
def _attention_in_parts() -> Iterator[None]:
    """Multi-head attention as the operators that it consists of: in eval mode PyTorch calls one that ONNX has not."""
    import torch

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


EXPORTERS: dict[str, Callable[[nn.Module, Path, Request], None]] = {"dynamo": dynamo, "eager": torchscript}
TORCH = "torch"  # no exporter: the weights themselves, which PyTorch's own engines load


def write_onnx(exporter: str, module: nn.Module, path: Path, request: Request) -> None:
    """Export a plain fp32 eval-mode module. Raises UserError naming the exporter and its own reason."""
    import torch

    from export import graph

    with _explained(exporter, request), quiet(), _no_graphs(), _no_stdout(), torch.no_grad():
        EXPORTERS[exporter](module, path, request)
    written = graph.opset(path)
    if written != request.opset:  # dynamo goes on with 18 where its converter has no way down, and says so in a log
        raise UserError(
            f"the {exporter} exporter cannot write this model at opset {request.opset}: it has no form of an operator "
            f"there, and wrote opset {written}; try the other --exporter or --opset {written}"
        )


def write_training(module: nn.Module, path: Path, request: Request) -> None:
    """Write the graph that training sees, through TorchScript: dropout and batch norm as they are then.

    The graph is to be looked at; nothing of it is folded or fused. The module is left in the mode it came in.
    Raises UserError with the exporter's reason.
    """
    import torch

    mode, statistics = module.training, copy.deepcopy(module.state_dict())
    with _explained("eager", request), quiet(), _no_stdout():
        _trace(
            module.train(), path, request, training=torch.onnx.TrainingMode.TRAINING, do_constant_folding=False
        )  # fmt: skip
    module.train(mode).load_state_dict(statistics)  # tracing in training mode has moved the running means


def _no_graphs() -> contextlib.AbstractContextManager[object]:
    """What torch.export prints on stderr of a model that it refuses: its graph, once for each of its strategies."""
    return contextlib.redirect_stderr(io.StringIO())


@contextlib.contextmanager
def _explained(exporter: str, request: Request) -> Iterator[None]:
    """An exporter's error as one line."""
    import torch

    try:
        yield
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
        stop_if_interrupted()
        raise UserError(
            f"the {exporter} exporter cannot write this model at opset {request.opset}: {_reason(error)}; "
            "try the other --exporter or --opset 20"
        ) from error
    stop_if_interrupted()


def _reason(error: Exception) -> str:
    """The innermost cause in one line: dynamo's own message only names the stage and pages of advice."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def data_path(path: Path) -> Path:
    """Where the weights of a large model lie: beside its graph."""
    return path.with_name(f"{path.name}.data")


def move(path: Path, target: Path) -> None:
    """Give an ONNX file, with the weights beside it, its place: the weights first, as the graph needs them."""
    assert path.name == target.name, "the graph holds its weights' file name"
    if data_path(path).is_file():
        data_path(path).replace(data_path(target))
    path.replace(target)


def _bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def load_torch(found: Found) -> nn.Module:
    """A torch artifact as the module it stands for: fp32, eval mode, on the CPU, with its activation.

    Raises UserError when the file is not the one recorded.
    """
    from safetensors.torch import load_file

    record = found.record
    assert record is not None and record.kind == "torch", "only a torch artifact has a module"
    path = record.file.verify(found.path.parent)
    shape = record.inputs[0].shape[1:]
    module = models.get(record.model).build(num_classes=len(record.classes), input_shape=tuple(shape), **record.options)
    module.load_state_dict(load_file(path))
    return swap_gelu(module, record.variant.gelu).eval()


def _example(request: Request) -> Tensor:
    import torch

    return torch.zeros(request.batch or TRACED_BATCH, *request.input_shape)


@contextlib.contextmanager
def _no_stdout() -> Iterator[None]:
    """Close the process's own stdout for a while: on an error TorchScript's C++ prints the whole graph there."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)

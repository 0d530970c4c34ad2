"""From a PyTorch module to a file. A row of EXPORTERS is a choice of `--exporter`; torch is imported on use."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from export.activations import swap_gelu
from export.artifact import Found
from trainers import models
from trainers.manifest import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

INPUT, OUTPUT = "images", "logits"
TRACED_BATCH = 2  # dynamo takes a batch of 1 for a constant


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to write: `batch` None leaves the batch dimension free."""

    input_shape: tuple[int, int, int]
    batch: int | None
    opset: int


def dynamo(module: nn.Module, path: Path, request: Request) -> None:
    """Write ONNX through torch.export; weights inside the file."""
    import torch

    program = torch.onnx.export(
        module,
        (_example(request),),
        dynamo=True,
        opset_version=request.opset,
        verbose=False,
        input_names=[INPUT],
        output_names=[OUTPUT],
        external_data=False,
        dynamic_shapes=None if request.batch else ({0: torch.export.Dim("batch", min=1)},),
    )
    assert program is not None, "torch.onnx.export returns a program when it is given no file"
    program.save(path, external_data=False)


def torchscript(module: nn.Module, path: Path, request: Request) -> None:
    """Write ONNX through TorchScript tracing; weights inside the file."""
    import torch

    torch.onnx.export(
        module,
        (_example(request),),
        str(path),
        dynamo=False,
        opset_version=request.opset,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_axes=None if request.batch else {INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
    )


EXPORTERS: dict[str, Callable[[nn.Module, Path, Request], None]] = {"dynamo": dynamo, "eager": torchscript}
TORCH = "torch"  # no exporter: the weights themselves, which PyTorch's own engines load


def write_onnx(exporter: str, module: nn.Module, path: Path, request: Request) -> None:
    """Export a plain fp32 eval-mode module. Raises UserError naming the exporter and its own reason."""
    import torch

    try:
        with quiet(), torch.no_grad():
            EXPORTERS[exporter](module, path, request)
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"the {exporter} exporter cannot write this model at opset {request.opset}: {reason}; "
            "try the other --exporter or --opset 20"
        ) from error


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
def quiet() -> Iterator[None]:
    """Hold back the exporters' chatter; their errors still come through."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)

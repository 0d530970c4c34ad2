"""Fake quantization of convolutions and fully connected layers: symmetric int8, weights by output channel.

torchao's PT2E flow finds the places, folds batch norms and writes the integer form; what a place computes while it is
trained stands here. A scale has one owner, so that the exported file rounds exactly as training did. Only
`trainers.qat` imports this module: torchao is an optional package.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torchao.quantization.pt2e import ObserverBase
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

from trainers.manifest import UserError
from trainers.optim import is_norm
from trainers.spec import FakeQuantization

ANNOTATION = "quantization_annotation"  # torchao's key in a node's `meta`
MATRIX_OPS = (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)
NORM = torch.ops.aten.batch_norm.default
NORM_EPS = 1e-5  # torchao folds norms with PyTorch's default and no other
TRACED_BATCH = 2  # torch.export takes a batch of 1 for a constant
SMALLEST = 2.0**-40  # a scale's floor: an input that is always zero must not divide by it
LEVELS = 127


class PerTensor(ObserverBase):
    """x -> scale * clamp(round(x / scale), -128, 127), with the gradient passed straight through inside the range.

    While `observing`, `scale` follows the largest magnitude, divided by 127, as a moving average (Jacob et al.,
    "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018, section 3.1);
    0 says that nothing has been seen yet.
    """

    scale: Tensor

    def __init__(
        self,
        *,
        averaging: float,
        dtype: torch.dtype,
        quant_min: int,
        quant_max: int,
        qscheme: torch.qscheme,
        is_dynamic: bool = False,
    ) -> None:
        super().__init__(dtype, is_dynamic)
        self.averaging, self.observing = averaging, False
        self.quant_min, self.quant_max, self.qscheme = quant_min, quant_max, qscheme
        self.register_buffer("scale", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.observing:
            self.observe(self.peak(x.detach()) / LEVELS)
        return self.round(x, *self.calculate_qparams())

    def peak(self, x: Tensor) -> Tensor:
        """The largest magnitude, where one scale is kept."""
        return x.abs().amax()

    def round(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, self.quant_min, self.quant_max)

    def observe(self, latest: Tensor) -> None:
        """Move the scale towards the latest; nothing here waits for a GPU."""
        if self.scale.shape != latest.shape:
            self.scale = torch.zeros_like(latest)
        self.scale.copy_(torch.where(self.scale > 0, torch.lerp(self.scale, latest, self.averaging), latest))

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point, as torchao reads them for the integer form."""
        scale = self.scale.clamp_min(SMALLEST)
        return scale, torch.zeros_like(scale, dtype=torch.int32)


class PerChannel(PerTensor):
    """One scale an output channel of a weight (O, …), always that of the latest weight."""

    def __init__(self, *, ch_axis: int, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.ch_axis = ch_axis

    def peak(self, x: Tensor) -> Tensor:
        return x.abs().flatten(1).amax(1)

    def round(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return torch.fake_quantize_per_channel_affine(
            x, scale, zero_point, self.ch_axis, self.quant_min, self.quant_max
        )


class SymmetricInt8(Quantizer):
    """Says where: the input and the weight of every convolution and fully connected layer; outputs stay free.

    That is the placement TensorRT fuses best. Weights never reach -128, which its kernels ask for.
    """

    def __init__(self, settings: FakeQuantization) -> None:
        self.activation = QuantizationSpec(
            dtype=torch.int8,
            quant_min=-128,
            quant_max=LEVELS,
            qscheme=torch.per_tensor_symmetric,
            observer_or_fake_quant_ctr=PerTensor.with_args(averaging=settings.averaging),
        )
        self.weight = QuantizationSpec(
            dtype=torch.int8,
            quant_min=-LEVELS,
            quant_max=LEVELS,
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
            observer_or_fake_quant_ctr=PerChannel.with_args(averaging=1.0),
        )

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        for node in model.graph.nodes:
            if node.target in MATRIX_OPS:
                wanted = {node.args[0]: self.activation, node.args[1]: self.weight}
                node.meta[ANNOTATION] = QuantizationAnnotation(input_qspec_map=wanted, _annotated=True)
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Raises UserError for what would not be quantized, or would be folded wrongly."""
        if not any(ANNOTATION in node.meta for node in model.graph.nodes):
            raise UserError("--qat: without 2-d convolution or linear layer there is nothing to quantize; leave it out")
        for node in model.graph.nodes:
            if node.target is NORM and node.args[7] != NORM_EPS:
                raise UserError(
                    f"--qat: torchao folds batch norms of eps {NORM_EPS:g} only, this model has one of "
                    f"{node.args[7]:g}; build it with that eps"
                )


class FakeQuantized(nn.Module):
    """A traced module (N, C, H, W) -> (N, classes) whose matrix products see what int8 keeps of their operands.

    `progress` says how much of the training is over: ranges and batch norm statistics stand after their share.
    """

    def __init__(self, graph: fx.GraphModule, settings: FakeQuantization) -> None:
        super().__init__()
        self.graph, self.settings = graph, settings
        self.places = [part for part in graph.modules() if isinstance(part, PerTensor)]
        self.over = 0.0
        self._mode: tuple[bool, bool, bool] | None = None
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        return self.graph(images)

    def train(self, mode: bool = True) -> FakeQuantized:
        self.training = mode
        self._switch(mode and self.over < self.settings.freeze_ranges, mode and self.over < self.settings.freeze_norms)
        return self

    def progress(self, over: float) -> None:
        """The share of the run that is over, from 0 to 1."""
        self.over = over
        self.train(self.training)

    def _switch(self, observing: bool, norms: bool) -> None:
        """A traced graph holds its modes as constants; they are written anew where they change."""
        if self._mode == (observing, norms, self.training):
            return
        self._mode = observing, norms, self.training
        for place in self.places:
            place.observing = observing
        for node in self.graph.graph.nodes:
            if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
                continue
            for index, argument in enumerate(node.target._schema.arguments[: len(node.args)]):
                if argument.name in ("training", "train"):
                    node.update_arg(index, norms if node.target is NORM else self.training)
        self.graph.recompile()


def prepare(module: nn.Module, input_shape: tuple[int, int, int], settings: FakeQuantization) -> FakeQuantized:
    """Trace a module and put fake quantization in its places; weights are shared, their scales set.

    Raises UserError when the module cannot be traced or holds nothing to quantize.
    """
    device = next(module.parameters()).device
    example = torch.zeros(TRACED_BATCH, *input_shape, device=device)
    batch = torch.export.Dim("batch", min=1)
    try:
        program = torch.export.export(module.train(), (example,), dynamic_shapes=({0: batch},))
    except (RuntimeError, ValueError, torch._dynamo.exc.TorchDynamoException) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--qat: torch.export cannot trace this model: {reason}; train it without --qat") from error
    traced = program.module(check_guards=False)
    assert isinstance(traced, fx.GraphModule)
    made = FakeQuantized(prepare_qat_pt2e(traced, SymmetricInt8(settings)), settings).to(device).eval()
    for path, part in module.named_modules():
        if is_norm(part):
            made.graph.get_submodule(path).was_norm = True  # type: ignore[assignment]
    for place in made.places:
        place.observing = isinstance(place, PerChannel)
    with torch.no_grad():
        made(example)
    for place in made.places:
        place.observing = False
    return made.train()


def convert(module: FakeQuantized) -> nn.Module:
    """The module in integer form, batch norms folded: Q/DQ pairs at its places. `module` is used up."""
    converted = convert_pt2e(module.eval().graph)
    for part in converted.modules():
        part.training = False  # torchao forbids eval(), and the exporter looks at this
    return converted

"""Adopting a model that was not trained here: an ordinary checkpoint of it, from whatever weights there are.

The weights are a file's, those that a library publishes, what the user's own factory gives, or random ones. Random
means by seed, with everything that an initialisation leaves constant made random too: a norm of ones and zeros, or a
layer scale near zero, would let a wrong export pass unnoticed.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from torch import nn

from export.images import SYNTHETIC, open_named
from export.pretrained import Published, published
from trainers import external, models
from trainers.checkpoint import NAME, Checkpoint, keep_previous, write_weights
from trainers.manifest import File, UserError, environment, link_or_copy
from trainers.spec import ModelSpec, Option, Preprocess
from trainers.weights import Weights
from trainers.weights import read as read_weights

SEED = 0
IMAGES = 8  # random images that running statistics are taken from
PRETRAINED, RANDOM = "pretrained", "random"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line says of a model and its weights."""

    name: str
    weights: str | None  # pretrained, random, a path, or None: pretrained where there are such, else random
    input_shape: tuple[int, int, int] | None
    images: str | None  # --calibration-data: where nothing else says it, the statistics of its pixels
    cache: Path | None


@dataclass(frozen=True, kw_only=True)
class _Made:
    """A module with its weights, and where those are from."""

    module: nn.Module
    provenance: str
    file: File | None = None


def adopt(request: Request, folder: Path) -> Checkpoint:
    """Leave a checkpoint in `folder`; one that is there with the same weights and settings stays as it is.

    Raises UserError when the model or its weights cannot be had, or it is no image classifier.
    """
    spec = models.get(request.name)
    known = published(request.name)
    shape, options = _shape(request, spec, known)
    made = _make(_Builder(request.name, spec, shape, options), request, known)
    module = made.module.float().eval()
    count = external.logits(request.name, module, shape)
    preprocess = _preprocess(request, shape, known)
    data = open_named(SYNTHETIC, preprocess, shape[0], request.cache, num_classes=None)
    classes = known.classes if known and len(known.classes) == count else tuple(f"class {i}" for i in range(count))
    record = Checkpoint(
        model=request.name, options=options, parameters=sum(p.numel() for p in module.parameters()), input_shape=shape,
        classes=classes, preprocess=preprocess, data=data.info, recipe=spec.recipe(spec.dataset), epochs=0, steps=0,
        seconds=0.0, metrics=None, files=(), environment=environment(), started_from=made.file,
        provenance=made.provenance,  # type: ignore[arg-type]  # one of the literal's words
    )  # fmt: skip
    return _store(record, module, folder)


@dataclass(frozen=True)
class _Builder:
    """Builds the module with fresh weights for a number of logits."""

    name: str
    spec: ModelSpec
    shape: tuple[int, int, int]
    options: Mapping[str, Option]

    def __call__(self, num_classes: int, seed: int = SEED) -> nn.Module:
        torch.manual_seed(seed)
        return self.spec.build(num_classes=num_classes, input_shape=self.shape, **self.options)


def _shape(
    request: Request, spec: ModelSpec, known: Published | None
) -> tuple[tuple[int, int, int], dict[str, Option]]:
    """The input's shape, and the model's options, one of which may be the image's size."""
    options = dict(spec.options)
    asked = request.input_shape
    if asked is not None and "size" in options:
        if asked[1] != asked[2] or asked[0] != spec.input_shape[0]:
            raise UserError(f"--input {'x'.join(map(str, asked))}: {request.name} takes square images of "
                            f"{spec.input_shape[0]} channels; give such a size")  # fmt: skip
        options["size"] = asked[1]
    return asked or (known.input_shape if known else spec.shape(options)), options


def _make(build: _Builder, request: Request, known: Published | None) -> _Made:
    """The module with the weights asked for; without a wish, the best that can be had."""
    count = len(known.classes) if known else build.spec.num_classes or external.PROVISIONAL_CLASSES
    if request.weights == RANDOM:
        return _random(build, count)
    if request.weights == PRETRAINED:
        if known is None:
            raise UserError(f"--weights pretrained: nobody publishes weights of {request.name}; give FILE or random")
        return _pretrained(build, known)
    if request.weights is not None:
        return _from_file(build, read_weights(Path(request.weights)), count, "file")
    if known is None:
        return _as_made(build, count)
    try:
        return _pretrained(build, known)
    except UserError as error:
        print(f"warning: {request.name} gets random weights, so no accuracy is measured: {error}", file=sys.stderr)
        return _random(build, count)


def _pretrained(build: _Builder, known: Published) -> _Made:
    return _from_file(build, read_weights(known.fetch()), len(known.classes), PRETRAINED)


def _from_file(build: _Builder, weights: Weights, count: int, provenance: str) -> _Made:
    """The module with a file's weights, built for as many classes as the file has."""
    module = build(count)
    own = weights.num_classes(module)
    if own is not None:
        module = build(own)
    weights.fit(module, own or count, strict=True)
    return _Made(module=module, provenance=provenance, file=weights.file)


def _as_made(build: _Builder, count: int) -> _Made:
    """What a factory gives: kept where it brings weights of its own, which no seed changes; else random."""
    first, second = build(count, seed=SEED).state_dict(), build(count, seed=SEED + 1).state_dict()
    if all(torch.equal(first[name], second[name]) for name in first):
        return _Made(module=build(count), provenance="factory")
    print(f"warning: {build.name} gets random weights, so no accuracy is measured; give --weights FILE",
          file=sys.stderr)  # fmt: skip
    return _random(build, count)


def _random(build: _Builder, count: int) -> _Made:
    module = build(count)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.numel() > 1 and parameter.min() == parameter.max():
                _vary(parameter)
        if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules()):
            _settle(build, module)
    return _Made(module=module, provenance=RANDOM)


def _vary(parameter: torch.Tensor) -> None:
    """Zeros, a bias or a shift, become small; any other constant, a scale, becomes a factor near one."""
    if parameter.flatten()[0] == 0:
        nn.init.normal_(parameter, std=0.2)
    else:
        nn.init.uniform_(parameter, 0.5, 1.5)


def _settle(build: _Builder, module: nn.Module) -> None:
    """Set running statistics to those of random images, so that a deep model neither fades nor explodes."""
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    external.logits(build.name, module.train(), build.shape, count=IMAGES)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _preprocess(request: Request, shape: tuple[int, int, int], known: Published | None) -> Preprocess:
    """As the library says; else by the statistics of the images that are given."""
    size, resize = shape[1:], min(shape[1:])
    if known is not None and len(known.mean) == shape[0]:
        return Preprocess(size=size, resize=round(resize * known.resize), mean=known.mean, std=known.std)
    plain = Preprocess(size=size, resize=resize, mean=(), std=())
    data = open_named(request.images or SYNTHETIC, plain, shape[0], request.cache, num_classes=None)
    return msgspec.structs.replace(plain, mean=data.mean, std=data.std)


def _store(record: Checkpoint, module: nn.Module, folder: Path) -> Checkpoint:
    """Write weights and record, unless what is there says the same. A trained checkpoint is kept by another name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{NAME}.json"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".adopt-") as scratch:
        written = Path(scratch) / f"{NAME}.safetensors"
        record = msgspec.structs.replace(record, files=(write_weights(module.state_dict(), written),))
        if path.is_file():
            old = Checkpoint.load(path)
            if msgspec.structs.replace(record, environment=old.environment) == old:
                old.weights.verify(folder)
                return old
        if kept := keep_previous(folder):
            print(f"note: {path} is replaced; the checkpoint that it was is kept as {kept}", file=sys.stderr)
        link_or_copy(written, folder / f"{NAME}.safetensors")
    record.save(path)
    return record

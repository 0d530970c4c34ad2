"""ModelSpec, Recipe and Preprocess: what a model is, how it is trained, what its input means."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from trainers.cli import choose
from trainers.manifest import Struct, UserError

if TYPE_CHECKING:
    from torch import nn

Precision = Literal["fp32", "bf16", "fp16"]
Option = int | float | bool | str


class Recipe(Struct, frozen=True, kw_only=True):
    """How one model is trained on one data source. Every field can be set by `--set field=value`."""

    # how long
    epochs: float = 1  # passes over the training split, also parts of one
    steps: int | None = None  # stop after this many steps instead; the schedule is fitted to them
    sizes: str | None = None  # image sizes in turn and epochs at each, "64:8,224:1", instead of `epochs`
    batch_size: int = 128  # images an optimizer step
    accumulate: int = 1  # parts a batch is computed in, one after the other, to save memory

    # the optimizer
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3  # the peak of the schedule
    schedule: Literal["cosine", "linear", "onecycle", "constant"] = "cosine"  # after a warm-up; see optim.py
    warmup: float = 0.25  # share of the steps before the peak
    momentum: float = 0.9  # sgd only
    weight_decay: float = 0.01  # not applied to norms and biases
    clip_norm: float | None = None  # bound of the norm of all gradients together
    clip_value: float | None = None  # bound of each gradient's every element
    ema: float = 0.0  # decay a step of the averaged weights, which are then the result; 0: none

    # the model and its images
    init: Literal["default", "kaiming", "xavier", "trunc_normal", "whiten"] = "default"
    label_smoothing: float = 0.0
    flip: bool = False  # mirror half of the training images
    crop: int = 0  # pad by this many pixels, then crop at random
    erase: float = 0.0  # share of the training images in which a random rectangle is blanked

    # how it is computed
    precision: Precision = "fp32"
    compile: bool = False
    channels_last: bool = False
    shard: bool = False  # spread the model over the processes instead of a copy in each
    rewrites: str = "all"  # exact faster forms of modules, from rewrites.py: all, none, or a comma list
    keep_memory: bool = True  # keep freed memory for the next step (Linux)
    deterministic: bool = False  # refuse operators that give other bits each time (a GPU has some)
    seed: int = 0
    save_every: int | None = None  # steps between training states; None: at the end of each epoch


Share = Annotated[float, msgspec.Meta(gt=0, le=1)]


class FakeQuantization(Struct, frozen=True, kw_only=True):
    """How `--qat` quantizes while it trains. Every field can be set by `--set field=value`."""

    quantizer: Literal["symmetric-int8"] = "symmetric-int8"
    averaging: Share = 0.05  # an activation's range: the weight of the latest batch in the moving average
    freeze_ranges: Share = 0.6  # share of the steps after which ranges stand
    freeze_norms: Share = 0.8  # share of the steps after which batch norm statistics stand


class Preprocess(Struct, frozen=True, kw_only=True):
    """What turns an RGB or grey uint8 image into the model's input.

    Scale the shorter side to `resize` pixels, cut the centre to `size` (height, width), divide by 255, subtract
    `mean` and divide by `std` (one value a channel).
    """

    size: tuple[int, int]
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: Literal["center"] = "center"
    interpolation: Literal["bilinear"] = "bilinear"
    layout: Literal["NCHW"] = "NCHW"


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model that can be trained by name.

    `build(num_classes=…, input_shape=…, **options)` makes the module; `options` holds the model's own settings and
    their defaults (`--set name=value`). An option called `size` is the image's height and width in pixels.
    `num_classes` is the number of logits for procedural data, and None for a model that follows whatever data it gets.
    `dataset` names the data source the model was made for; `recipes` holds a Recipe by data source, of which
    `dataset` must be one: it serves every source without its own. `named` holds further recipes (`--recipe NAME`) for
    `dataset`.
    """

    build: Callable[..., nn.Module]
    dataset: str
    input_shape: tuple[int, int, int]
    num_classes: int | None
    recipes: Mapping[str, Recipe]
    options: Mapping[str, Option] = field(default_factory=dict)
    named: Mapping[str, Recipe] = field(default_factory=dict)

    def recipe(self, source: str, name: str = "default") -> Recipe:
        """The recipe for a data source, or one of the model's named ones. Raises UserError on an unknown name."""
        if choose(name, ["default", *self.named], "recipe") != "default":
            return self.named[name]
        return self.recipes.get(source, self.recipes[self.dataset])

    def shape(self, options: Mapping[str, Option]) -> tuple[int, int, int]:
        """(channels, height, width) of the input under these options."""
        channels, height, width = self.input_shape
        size = options.get("size")
        return (channels, int(size), int(size)) if size is not None else (channels, height, width)

    def configure(self, settings: Mapping[str, str], recipe: Recipe) -> tuple[dict[str, Option], Recipe]:
        """Apply `--set key=value` pairs: a key is one of the model's options or a field of the recipe.

        Raises UserError on an unknown key or a value of the wrong type.
        """
        options, changes = dict(self.options), msgspec.to_builtins(recipe)
        for key, text in settings.items():
            choose(key, [*options, *changes], "setting")
            (options if key in options else changes)[key] = parse(text)
        if changes["sizes"] is not None and {"epochs", "steps", "size"} & set(settings):
            if "sizes" in settings:
                raise UserError("sizes says how long and at which size; leave out epochs, steps and size")
            changes["sizes"] = None  # the flag's wish goes before the recipe's
        if {"epochs", "sizes"} & set(settings) and "steps" not in settings:
            changes["steps"] = None
        for key, default in self.options.items():
            if isinstance(default, float) and isinstance(options[key], int):
                options[key] = float(options[key])
            if type(options[key]) is not type(default):
                raise UserError(
                    f"--set {key}={settings[key]}: expected {type(default).__name__}; write for example "
                    f"--set {key}={default}"
                )
        try:
            recipe = check(msgspec.convert(changes, Recipe, strict=True))
        except msgspec.ValidationError as error:
            raise UserError(f"--set: {error}; give a value of that type") from None
        if legs := legs_of(recipe):
            if "size" not in options:
                raise UserError("sizes: this model takes images of one size; leave sizes out")
            options["size"] = legs[-1].size
        return options, recipe


class Leg(Struct, frozen=True):
    """A part of a run at one image size, in pixels."""

    size: int
    epochs: float


def legs_of(recipe: Recipe) -> list[Leg]:
    """`sizes` as a list, empty for none. Raises UserError when it does not read `size:epochs,…`."""
    if recipe.sizes is None:
        return []
    legs = []
    for part in recipe.sizes.split(","):
        size, _, epochs = part.partition(":")
        try:
            legs.append(Leg(int(size), float(epochs)))
        except ValueError:
            legs.append(Leg(0, 0))
        if not (legs[-1].size > 0 and 0 < legs[-1].epochs < math.inf):
            raise UserError(f"sizes={recipe.sizes}: {part!r} is not size:epochs; write for example sizes=64:8,224:1")
    return legs


def check(recipe: Recipe) -> Recipe:
    """Return the recipe if its numbers make sense; raises UserError naming the first that does not."""
    for name in ("epochs", "steps", "batch_size", "accumulate", "lr", "clip_norm", "clip_value", "save_every"):
        value = getattr(recipe, name)
        if value is not None and not value > 0:
            raise UserError(f"{name}={value} must be above 0; give another value")
    for name in ("warmup", "momentum", "label_smoothing", "ema", "erase"):
        if not 0 <= getattr(recipe, name) < 1:
            raise UserError(f"{name}={getattr(recipe, name)} must be in [0, 1); give another value")
    for name in ("weight_decay", "crop", "seed"):
        if not getattr(recipe, name) >= 0:
            raise UserError(f"{name}={getattr(recipe, name)} must not be negative; give another value")
    if recipe.batch_size % recipe.accumulate:
        raise UserError(f"batch_size={recipe.batch_size} cannot be cut into accumulate={recipe.accumulate} equal parts")
    return recipe


def parse(text: str) -> Any:
    """`--set` values are JSON where they parse as such (numbers, true, null), else plain text."""
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
    return value if value is None or isinstance(value, int | float | bool | str) else text

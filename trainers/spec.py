"""ModelSpec, Recipe and Preprocess: what a model is, how it is trained, what its input means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from trainers.cli import choose
from trainers.manifest import Struct, UserError

if TYPE_CHECKING:
    from torch import nn

Precision = Literal["fp32", "bf16", "fp16"]
Option = int | float | bool | str


class Recipe(Struct, frozen=True, kw_only=True):
    """How one model is trained on one data source. Every field can be set by `--set field=value`."""

    epochs: int = 1
    steps: int | None = None  # stop after this many steps; the schedule is fitted to them
    batch_size: int = 128
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3  # the peak of the one-cycle schedule
    warmup: float = 0.25  # share of the steps before the peak
    momentum: float = 0.9  # sgd only
    weight_decay: float = 0.01  # not applied to norms and biases
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    flip: bool = False  # mirror half of the training images
    crop: int = 0  # pad by this many pixels, then crop at random
    precision: Precision = "fp32"
    compile: bool = False
    channels_last: bool = False
    seed: int = 0
    save_every: int | None = None  # steps between training states; None: at the end of each epoch


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
    `dataset` names the data source the model was made for; `recipes` holds a Recipe by data source, of which
    `dataset` must be one: it serves every source without its own.
    """

    build: Callable[..., nn.Module]
    dataset: str
    input_shape: tuple[int, int, int]
    num_classes: int
    recipes: Mapping[str, Recipe]
    options: Mapping[str, Option] = field(default_factory=dict)

    def recipe(self, source: str) -> Recipe:
        """The recipe for a data source."""
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
            (options if key in options else changes)[key] = _parse(text)
        for key, default in self.options.items():
            if isinstance(default, float) and isinstance(options[key], int):
                options[key] = float(options[key])
            if type(options[key]) is not type(default):
                raise UserError(
                    f"--set {key}={settings[key]}: expected {type(default).__name__}; write for example "
                    f"--set {key}={default}"
                )
        try:
            return options, check(msgspec.convert(changes, Recipe, strict=True))
        except msgspec.ValidationError as error:
            raise UserError(f"--set: {error}; give a value of that type") from None


def check(recipe: Recipe) -> Recipe:
    """Return the recipe if its numbers make sense; raises UserError naming the first that does not."""
    for name in ("epochs", "steps", "batch_size", "lr", "clip_norm", "save_every"):
        value = getattr(recipe, name)
        if value is not None and not value > 0:
            raise UserError(f"{name}={value} must be above 0; give another value")
    for name in ("warmup", "momentum", "label_smoothing"):
        if not 0 <= getattr(recipe, name) < 1:
            raise UserError(f"{name}={getattr(recipe, name)} must be in [0, 1); give another value")
    for name in ("weight_decay", "crop", "seed"):
        if not getattr(recipe, name) >= 0:
            raise UserError(f"{name}={getattr(recipe, name)} must not be negative; give another value")
    return recipe


def _parse(text: str) -> Any:
    """`--set` values are JSON where they parse as such (numbers, true, null), else plain text."""
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
    return value if value is None or isinstance(value, int | float | bool | str) else text

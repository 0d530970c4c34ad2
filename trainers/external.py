"""Models that are not in trainers/models: `FILE.py:FACTORY` of the user's own, `torchvision:NAME`, `timm:NAME`.

The two libraries are installed code, named freely. A file of the user's own is run only after `allow` was given its
path from a command line: a record holds `net.py:factory`, without a path, and never causes code to run.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec

from trainers.cli import choose
from trainers.manifest import UserError
from trainers.spec import ModelSpec, Option, Recipe

if TYPE_CHECKING:
    from torch import Tensor, nn

INPUT_SHAPE = (3, 224, 224)
PROVISIONAL_CLASSES = 10  # for a first look at a model, before the data say how many there are
# Rewrites are exact for a module that meets maps of one size: ours do, a stranger's may not.
RECIPE = Recipe(
    epochs=5,
    batch_size=32,
    lr=1e-3,
    warmup=0.1,
    clip_norm=1.0,
    weight_decay=0.05,
    label_smoothing=0.1,
    precision="bf16",
    channels_last=True,
    rewrites="none",
)

_allowed: dict[str, Path] = {}  # name as in a record -> the file that this command line named


def is_file(name: str) -> bool:
    """Whether a model's name is that of a factory in a file."""
    return name.rpartition(":")[0].endswith(".py")


def allow(text: str) -> str:
    """The name of the model that the user typed; if it is a file's, that file may be run from now on.

    Raises UserError when there is no such file. Pass only what comes from the command line.
    """
    if text.endswith(".py"):
        raise UserError(f"{text}: which of its functions makes the model? write {text}:NAME")
    if not is_file(text):
        return text
    file, _, factory = text.rpartition(":")
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise UserError(f"{file}: no such file; give the path of your Python file")
    name = f"{path.name}:{factory}"
    _allowed[name] = path
    return name


def spec(name: str) -> ModelSpec:
    """The ModelSpec of an external model. Raises UserError when it is unknown, not installed or not allowed."""
    library, _, rest = name.partition(":")
    if is_file(name):
        return _of_file(name)
    return {"torchvision": _of_torchvision, "timm": _of_timm}[choose(library, ("timm", "torchvision"), "library")](rest)


def named(name: str, flag: str) -> Callable[..., Any]:
    """What `FILE.py:NAME` names. Raises UserError when no command line named the file, by `flag`, or it has no NAME."""
    check_allowed(name, flag)
    return _factory(_imported(_allowed[name]), name)


def source(name: str) -> bytes:
    """The text of an allowed `FILE.py:NAME`'s file."""
    return _allowed[name].read_bytes()


def fingerprint(name: str) -> str | None:
    """The sha256 of an allowed `FILE.py:NAME`'s file; None for a model that is in no file of the user's."""
    return hashlib.sha256(source(name)).hexdigest() if is_file(name) else None


def call(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call what is the user's own. Raises UserError with its error and the place in the file."""
    with _theirs(f"{name} cannot be called", ""):
        return function(*arguments)


def probe(
    name: str, spec: ModelSpec, options: Mapping[str, Option], recipe: Recipe, num_classes: int
) -> tuple[nn.Module, int]:
    """Build the model and run it once as testing and training will, on zeros; returns it and its number of logits.

    Raises UserError when it does not turn (N, channels, height, width) into (N, classes) logits that can be trained.
    """
    import torch

    shape = spec.shape(options)
    module = spec.build(num_classes=num_classes, input_shape=shape, **options)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise UserError(f"{name} has no parameters to train; give another model")
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    count = min(2, recipe.batch_size // recipe.accumulate)
    images = torch.zeros(count, *shape).contiguous(memory_format=layout)
    for mode in ("testing", "training"):
        with _theirs(f"{name} cannot be run in {mode} on images {_text(shape)} in batches of {count}", "--input"):
            logits = module.train(mode == "training")(images)
        classes = _width(logits, count, f"{name} in {mode}")
    if not logits.requires_grad:
        raise UserError(f"{name}: its logits do not depend on its parameters; mend it")
    return module, classes


def logits(name: str, module: nn.Module, shape: tuple[int, int, int], count: int = 2) -> int:
    """Run a module as it is on `count` random images; returns its number of logits.

    Raises UserError when it does not turn (N, channels, height, width) into (N, classes) finite logits that differ
    from image to image.
    """
    import torch

    images = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
    with _theirs(f"{name} cannot be run on images {_text(shape)}", "--input"), torch.no_grad():
        found = module(images)
    classes = _width(found, count, name)
    if not found.isfinite().all():
        raise UserError(f"{name} gives NaN or infinity on random images; give other weights")
    if (found.amax(0) - found.amin(0)).max() <= 1e-6 * max(float(found.std()), 1e-30):
        raise UserError(f"{name} gives the same logits for different images; give other weights, or mend it")
    return classes


def check_allowed(name: str, flag: str = "--model") -> None:
    """Raise UserError where a record names what is in a file that no command line has named, by `flag`."""
    if is_file(name) and name not in _allowed:
        raise UserError(f"{name} is code of your own, which a record never runs; name its file: {flag} PATH/{name}")


def _width(logits: Tensor, count: int, what: str) -> int:
    """The number of logits. Raises UserError unless this is one tensor (N, classes)."""
    import torch

    if not isinstance(logits, torch.Tensor):
        kind = f"{len(logits)} outputs" if isinstance(logits, tuple | list | dict) else type(logits).__name__
        raise UserError(f"{what} gives {kind} instead of one tensor of logits; wrap it in a module that returns one")
    if logits.dim() != 2 or len(logits) != count or not logits.is_floating_point():
        found = f"{tuple(logits.shape)} {str(logits.dtype).removeprefix('torch.')}"
        raise UserError(f"{what} gives {found} for {count} images instead of one row of logits an image; mend it")
    return logits.shape[1]


def _of_torchvision(name: str) -> ModelSpec:
    from torchvision import models

    _listed(name, models.list_models(module=models), "torchvision")

    def build(num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
        return _built(lambda: models.get_model(name, weights=None, num_classes=num_classes), name, input_shape)

    return _made(build, INPUT_SHAPE)


def _of_timm(name: str) -> ModelSpec:
    if importlib.util.find_spec("timm") is None:
        raise UserError(f"timm:{name} needs timm; pip install timm")
    import timm

    # Only registered names: a hub's name would be downloaded, and a record may name it.
    _listed(name.partition(".")[0], timm.list_models(), "timm")
    with _theirs(f"timm:{name} cannot be made", ""):  # a tag after the dot may be wrong
        config = timm.get_pretrained_cfg(name)

    def build(num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
        channels, *size = input_shape
        told = config is not None and config.fixed_input_size and config.input_size[1:] != tuple(size)
        keywords = {"img_size": size} if told else {}
        make = functools.partial(timm.create_model, name, pretrained=False, num_classes=num_classes, in_chans=channels)
        return _built(functools.partial(make, **keywords), name, input_shape)

    channels, height, width = config.input_size if config else INPUT_SHAPE
    return _made(build, (channels, height, width))


def _of_file(name: str) -> ModelSpec:
    factory = named(name, "--model")
    taken, options = _parameters(factory, name)

    def build(num_classes: int, input_shape: tuple[int, int, int], **chosen: Option) -> nn.Module:
        given = {"num_classes": num_classes, "input_shape": input_shape}
        keywords = {key: value for key, value in given.items() if key in taken} | chosen
        return _built(lambda: factory(**keywords), name, input_shape)

    # Whether such a model can take channels-last images is not known: `x.view(…)` cannot.
    return _made(build, INPUT_SHAPE, options, channels_last=False)


def _factory(module: ModuleType, name: str) -> Callable[..., Any]:
    """What makes the model. Raises UserError naming what the file has instead."""
    file, _, wanted = name.rpartition(":")
    found: Callable[..., Any] | None = getattr(module, wanted, None)
    if callable(found):
        return found
    own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    if not own:
        raise UserError(f"{file} defines no function or class; write one and name it")
    raise UserError(f"{file} has no {wanted!r}; it has {', '.join(own[:10])}")


def _parameters(factory: Callable[..., Any], name: str) -> tuple[set[str], dict[str, Option]]:
    """Which of num_classes and input_shape the factory takes, and its other settings with their defaults.

    Raises UserError when it needs something else.
    """
    with _theirs(f"{name} cannot be called", ""):
        parameters = inspect.signature(factory).parameters.values()
    taken: set[str] = set()
    options: dict[str, Option] = {}
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD:
            taken.add("num_classes")
        elif parameter.kind is parameter.VAR_POSITIONAL:
            continue
        elif parameter.name in ("num_classes", "input_shape"):
            taken.add(parameter.name)
        elif parameter.default is parameter.empty:
            raise UserError(
                f"{name} needs {parameter.name!r}, which has no default; it may ask for num_classes and input_shape"
            )
        elif isinstance(parameter.default, int | float | bool | str) and not _is_recipes(parameter.name):
            options[parameter.name] = parameter.default
    return taken, options


def _is_recipes(name: str) -> bool:
    """Whether `--set name=…` means the recipe."""
    return name in Recipe.__struct_fields__


@functools.cache
def _imported(path: Path) -> ModuleType:
    """Run the user's file. Raises UserError with its own error and line."""
    found = importlib.util.spec_from_file_location(f"user_{path.stem}", path)
    assert found is not None and found.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # for its neighbours; last, so that none of them hides a module of ours
    with _theirs(f"{path} cannot be imported", ""):
        found.loader.exec_module(module)
    return module


def _built(make: Callable[[], object], name: str, input_shape: tuple[int, int, int]) -> nn.Module:
    """Call a factory. On the CPU, wherever the caller is: a stranger's constructor may compute, which meta cannot."""
    import torch
    from torch import nn

    with torch.device("cpu"):
        with _theirs(f"{name} cannot be made", ""):
            module = make()
        if not isinstance(module, nn.Module):
            raise UserError(f"{name} makes a {type(module).__name__}, not a torch.nn.Module; let it return the module")
        if any(nn.parameter.is_lazy(parameter) for parameter in module.parameters()):
            with _theirs(f"{name} cannot be run on images {_text(input_shape)}", "--input"), torch.no_grad():
                module.eval()(torch.zeros(2, *input_shape))  # lazy modules take their shapes from the first images
    return module.train()


def _made(
    build: Callable[..., nn.Module], shape: tuple[int, int, int], options: Mapping[str, Option] | None = None, *,
    channels_last: bool = True,
) -> ModelSpec:  # fmt: skip
    recipe = msgspec.structs.replace(RECIPE, channels_last=channels_last)
    return ModelSpec(
        build=build, dataset="folder", input_shape=shape, num_classes=None, recipes={"folder": recipe},
        options=options or {},
    )  # fmt: skip


def _listed(name: str, known: Iterable[str], library: str) -> None:
    names = list(known)
    if name not in names:
        near = difflib.get_close_matches(name, names)
        hint = f"did you mean {' or '.join(near)}?" if near else f"see the models of {library}'s documentation"
        raise UserError(f"{library} has no image classifier {name!r}; {hint}")


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


@contextlib.contextmanager
def _theirs(what: str, flag: str) -> Iterator[None]:
    """A border to code that is not ours and may raise anything, in one line with the place in the user's file."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
            yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        reason = f"{type(error).__name__}: {text}"[:300]
        remedy = f"mend the model or give another {flag} or batch size" if flag else "mend it"
        raise UserError(f"{what}: {reason}{_place(error)}; {remedy}") from None


def _place(error: BaseException) -> str:
    """` (FILE.py, line N)` of the innermost frame in a file of the user's; empty where there is none."""
    files = {str(path) for path in _allowed.values()}
    place, trace = "", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in files:
            place = f" ({Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return place

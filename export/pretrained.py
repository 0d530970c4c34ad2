"""What torchvision and timm publish for a model: its weights, its preprocessing and the names of its classes.

The libraries' own download code fetches into their own caches; a file is only ever read by `trainers.weights`.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.manifest import UserError
from trainers.source import statistics

PATIENCE = 5.0  # seconds without an answer after which a server counts as unreachable
WEIGHTS = "model.safetensors"  # what the hub calls a model's weights
IMAGENET = 1000  # logits of a model that nothing else is known of
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


@dataclass(frozen=True, kw_only=True)
class Published:
    """A model as its library describes it. `fetch` gives the path of the weights, or raises UserError."""

    input_shape: tuple[int, int, int]
    resize: float  # the shorter side before the centre is cut out, in sides of the cut
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    fetch: Callable[[], Path]


def published(name: str) -> Published | None:
    """What the library says of `torchvision:NAME` or `timm:NAME`; None for any other model."""
    library, _, rest = name.partition(":")
    known = {"torchvision": _torchvision, "timm": _timm}
    return known[library](rest) if library in known else None


def _torchvision(name: str) -> Published:
    from torchvision import models

    weights: Any = models.get_model_weights(name).DEFAULT
    applied = weights.transforms()
    side = applied.crop_size[0]
    return Published(
        input_shape=(len(applied.mean), side, side),
        resize=applied.resize_size[0] / side,
        mean=tuple(applied.mean),
        std=tuple(applied.std),
        classes=tuple(weights.meta["categories"]),
        fetch=lambda: _from_url(weights.url),
    )


def _timm(name: str) -> Published:
    import timm

    config: Any = timm.get_pretrained_cfg(name)
    if config is None:
        return _unknown(name)
    channels, height, width = config.input_size
    return Published(
        input_shape=(channels, height, width),
        resize=1 / (config.crop_pct or 1.0),
        mean=statistics(tuple(config.mean), channels),
        std=statistics(tuple(config.std), channels),
        classes=_labels(config),
        fetch=lambda: _of_timm(name, config),
    )


def _unknown(name: str) -> Published:
    def fetch() -> Path:
        raise UserError(f"timm publishes no weights for {name}; give --weights random or FILE")

    return Published(
        input_shape=(3, 224, 224), resize=1.0, mean=MEAN, std=STD, classes=_numbered(IMAGENET), fetch=fetch
    )


def _labels(config: Any) -> tuple[str, ...]:
    """ImageNet's own names where timm knows that it is ImageNet, else numbers."""
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    count = config.num_classes or IMAGENET
    subset = infer_imagenet_subset(config)
    if subset is None:
        return _numbered(count)
    info = ImageNetInfo(subset)
    return tuple(info.index_to_description(index) for index in range(count))


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"class {index}" for index in range(count))


def _of_timm(name: str, config: Any) -> Path:
    if config.hf_hub_id:
        return _from_hub(config.hf_hub_id)
    if config.url:
        return _from_url(config.url)
    return _unknown(name).fetch()


def _from_url(url: str) -> Path:
    """The file in PyTorch's hub cache, downloaded if need be; the digest in its name is then checked by PyTorch."""
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = torch.hub.HASH_REGEX.search(path.name)
        with _reachable(url):
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digest[1] if digest else None, progress=False)
    return path


def _from_hub(identifier: str) -> Path:
    """The file in the hub's cache, downloaded if need be."""
    from huggingface_hub import hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, _, revision = identifier.partition("@")
    at = revision or None
    with contextlib.suppress(LocalEntryNotFoundError):
        return Path(hf_hub_download(repository, WEIGHTS, revision=at, local_files_only=True))
    url = hf_hub_url(repository, WEIGHTS, revision=at)
    with _reachable(url):
        import urllib.request

        # The hub's own client tries for half a minute before it gives up: ask once whether it is there at all.
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE).close()  # noqa: S310
        return Path(hf_hub_download(repository, WEIGHTS, revision=at))


@contextlib.contextmanager
def _reachable(url: str) -> Iterator[None]:
    """Give up soon on a server that does not answer. Raises UserError with the reason."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: another digest than the name's
        reason = " ".join(str(getattr(error, "reason", error)).split())[:200]
        raise UserError(f"{url} cannot be fetched ({reason}); give --weights FILE or random") from None
    finally:
        socket.setdefaulttimeout(before)

"""Model: an artifact loaded in an engine, to be called from a program. Made by `runtime.load` and `runtime.best`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.sessions import Sessions
from trainers.manifest import UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from export.artifact import Artifact, Found
    from runtime.backend import Session
    from trainers.spec import Preprocess


class Model:
    """`model(images)` gives logits; safe to call from several threads.

    Sessions are loaded for one batch size each, on first use, and the four sizes used last are kept. A file of a fixed
    batch size takes that alone. Close it, or use it in a `with` statement, to give the engine's memory back at once.
    """

    def __init__(
        self, found: Found, load: Callable[[int], Session], *, backend: str, device: str, threads: int,
        shape: tuple[int | None, ...], dtype: str,
    ) -> None:  # fmt: skip
        self._found, self._shape, self._dtype = found, shape, dtype
        self._backend, self._device, self._threads = backend, device, threads
        self._sessions = Sessions(load, needs_torch=found.kind == "torch")

    def __call__(self, images: np.ndarray | Tensor) -> np.ndarray:
        """Logits float32 [n, classes] of preprocessed images float32 [n, C, H, W], n >= 1.

        A file made with `--input-dtype uint8` takes raw pixels, uint8 [n, C, H, W]. A torch.Tensor on the CPU serves
        too. Raises UserError when the images do not fit or the model is closed, BackendError when the engine fails.
        """
        return self._sessions.answer(self._checked(images))

    def predict(self, image: str | Path | Image, *, top: int = 5) -> list[tuple[str, float]]:
        """The likeliest classes of one picture and their probabilities: an image file, or a PIL image.

        It is prepared as the record says: scaled by its shorter side, cut at the centre, normalised. Raises UserError
        when it cannot be read, or the file has no record to say how.
        """
        from runtime import predict

        if self.record is None:
            raise UserError(f"{self._found.path} has no record of its classes and preprocessing; give preprocessed "
                            "images to the model itself")  # fmt: skip
        return predict.ranked(self(predict.prepared(image, self.record))[0], self.record.classes, top)

    def prepare(self, batch: int) -> None:
        """Load for a batch size now, which its first use would do. Raises BackendError when the engine cannot."""
        self._sessions.prepare(batch)

    def close(self) -> None:
        """Give the engine's memory back, once the calls of other threads are answered; later calls raise UserError."""
        self._sessions.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{self._found.name} in {self._backend} on {self._device}, {self._threads} threads>"

    @property
    def record(self) -> Artifact | None:
        """What is recorded of the file: variant, parity, parents, …; None where nobody vouches for it."""
        return self._found.record

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the logits, in their order; empty where there is no record."""
        return self.record.classes if self.record else ()

    @property
    def preprocess(self) -> Preprocess | None:
        """What makes the model's input of a picture; None where there is no record."""
        return self.record.preprocess if self.record else None

    @property
    def backend(self) -> str:
        return self._backend

    @property
    def device(self) -> str:
        return self._device

    @property
    def attested(self) -> dict[str, str]:
        """What the engine itself says about how it runs, for the batch size used last: provider, precision, …"""
        return self._sessions.attested()

    def _checked(self, images: Any) -> np.ndarray:
        """The images as an array that every engine takes: its own memory order, aligned, writable."""
        torch = sys.modules.get("torch")
        is_tensor = torch is not None and isinstance(images, torch.Tensor)
        if not is_tensor and not isinstance(images, np.ndarray):
            raise UserError(f"images: a {type(images).__name__}; give a numpy array {self._wanted}")
        if is_tensor and images.device.type != "cpu":
            raise UserError(f"images: a tensor on {images.device}; give images.cpu()")
        dtype = str(images.dtype).removeprefix("torch.")
        if dtype != self._dtype:
            raise UserError(f"images: {dtype}; give {self._wanted}")
        batch, *image = self._shape
        if list(images.shape[1:]) != image or not len(images):
            raise UserError(f"images: shape {list(images.shape)}; give {self._wanted}")
        if batch not in (None, len(images)):
            raise UserError(f"images: {len(images)} of them, and the file's batch size is fixed; give {self._wanted}")
        array: np.ndarray = images.detach().numpy() if is_tensor else images
        return np.require(array, requirements=("C", "ALIGNED", "WRITEABLE"))

    @property
    def _wanted(self) -> str:
        """The images taken, for a message."""
        batch, *image = self._shape
        return f"{self._dtype} [{', '.join(map(str, (batch or 'n', *image)))}]"

"""Backend and Session: what an engine must offer to be measured.

A backend is a module of `runtime.backends`; its file name is its name on the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np

    from export.artifact import Found


class BackendError(Exception):
    """The engine cannot serve this artifact as asked. The message is one line; it becomes the row's reason."""


@runtime_checkable
class Session(Protocol):
    """An artifact loaded for one batch size. `step` starts one inference, `sync` waits until all started ones are done.

    `build_s` are the seconds spent compiling (0.0 for engines that only load); `attested` is what the engine itself
    says about how it runs: provider, precision, version.
    """

    build_s: float
    attested: dict[str, str]

    def bind(self, x: np.ndarray) -> None:
        """Make `x` the input of the next steps: [batch, channels, height, width], float32 or, for raw pixels, uint8."""

    def step(self) -> None:
        """Run the network once on the bound input; may return before the result is there."""

    def sync(self) -> None:
        """Return once every step started is done."""

    def fetch(self) -> np.ndarray:
        """The last step's logits, float32 [batch, classes], on the host."""

    def close(self) -> None:
        """Release the engine's memory; the session is not used again."""


@runtime_checkable
class Timed(Protocol):
    """What a session on a GPU may also offer: the device's own time."""

    def device_s(self) -> float | None:
        """Run one step and give its seconds between two events in the GPU's own stream, which include its idle gaps.

        It is a step of its own, so that no timed one pays for the events. None where the session is not on a GPU.
        """


@runtime_checkable
class Backend(Protocol):
    """An engine.

    `formats` are the artifact kinds it loads, `packages` the distributions whose version names the engine, `options`
    what `--option key=value` may set: the values allowed for each key, the default first. `computes` is False for the
    null backend alone, whose outputs mean nothing. A backend that is for few of the forms of a model says which by a
    function `takes(record)`; no rows are made of the others.
    """

    formats: tuple[str, ...]
    packages: tuple[str, ...]
    options: Mapping[str, tuple[str, ...]]
    computes: bool

    def unusable(self, device: str) -> str | None:
        """Why the engine cannot run on `device` ("cpu" or "cuda") here, in one line; None when it can. Cheap."""

    def load(self, artifact: Found, *, device: str, threads: int, batch: int, options: Mapping[str, str]) -> Session:
        """Load the artifact for inputs of `batch` images. Raises BackendError when the engine cannot serve it."""

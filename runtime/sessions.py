"""Sessions: what one model has loaded, by batch size, shared by the threads of a program."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from runtime.backend import BackendError, Session
from trainers.manifest import UserError

if TYPE_CHECKING:
    import numpy as np

KEPT = 4  # batch sizes: each holds the weights once more
_torch_loads = threading.Lock()  # torch.export and Inductor trace with state of the process, not of the thread


class Sessions:
    """A session for each batch size, loaded on first use; the KEPT used last stay.

    Each serves one thread at a time. `needs_torch`: the engine computes with PyTorch's modules.
    """

    def __init__(self, load: Callable[[int], Session], *, needs_torch: bool) -> None:
        self._load, self._needs_torch = load, needs_torch
        self._lock = threading.Lock()  # for the two below; never held while an engine works
        self._seats: dict[int, _Seat] = {}  # the one used last comes last
        self._closed = False

    def prepare(self, batch: int) -> None:
        """Load for a batch size now. Raises BackendError when the engine cannot, UserError after `close`."""
        with self._taken(batch):
            pass

    def answer(self, images: np.ndarray) -> np.ndarray:
        """The logits of one batch. Raises BackendError when the engine fails, UserError after `close`."""
        with self._taken(len(images)) as session:
            session.bind(images)
            session.step()
            session.sync()
            return session.fetch()

    def attested(self) -> dict[str, str]:
        """What the engine says of the session used last; empty once closed."""
        with self._lock:
            loaded = [session for seat in self._seats.values() if (session := seat.session) is not None]
        return dict(loaded[-1].attested) if loaded else {}

    def close(self) -> None:
        """Release the engine's memory once the calls that run have their answers; a second time does nothing."""
        with self._lock:
            self._closed = True
            seats, self._seats = list(self._seats.values()), {}
        for seat in seats:
            self._leave(seat)

    @contextlib.contextmanager
    def _taken(self, batch: int) -> Iterator[Session]:
        """The session of a batch size, for this thread alone."""
        while True:
            seat = self._seat(batch)
            with seat.lock:
                if seat.left:  # another thread needed its place before this one came in
                    continue
                with _engine(needs_torch=self._needs_torch):
                    if seat.session is None:
                        with _torch_loads if self._needs_torch else contextlib.nullcontext():
                            seat.session = self._load(batch)
                    yield seat.session
                return

    def _seat(self, batch: int) -> _Seat:
        """The seat of a batch size, as the one used last; what is beyond KEPT leaves."""
        with self._lock:
            if self._closed:
                raise UserError("the model is closed; load it again")
            self._seats[batch] = seat = self._seats.pop(batch, None) or _Seat()
            leaving = [self._seats.pop(size) for size in list(self._seats)[:-KEPT]]
        for old in leaving:
            self._leave(old)
        return seat

    def _leave(self, seat: _Seat) -> None:
        with seat.lock, _engine(needs_torch=self._needs_torch):
            seat.left = True
            if seat.session is not None:
                seat.session.close()
                seat.session = None


class _Seat:
    """The place of one session. What it holds changes only under its lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.session: Session | None = None
        self.left = False


@contextlib.contextmanager
def _engine(*, needs_torch: bool) -> Iterator[None]:
    """The border to an engine, which may raise anything: it becomes a BackendError in one line.

    PyTorch's switch for gradients belongs to the thread. It is off for each call, whichever thread makes it, and as it
    was afterwards.
    """
    with _no_gradients() if needs_torch else contextlib.nullcontext():
        try:
            yield
        except (BackendError, UserError):
            raise
        except Exception as error:
            from runtime.worker import explain

            raise BackendError(explain(error)) from error


def _no_gradients() -> contextlib.AbstractContextManager[None]:
    import torch

    return torch.no_grad()

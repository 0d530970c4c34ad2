"""Ctrl-C and SIGTERM at a moment that suits: between two training steps."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Request:
    """Whether a stop was asked for since the context was entered."""

    asked = False


@contextlib.contextmanager
def deferred() -> Iterator[Request]:
    """Note the first SIGINT or SIGTERM instead of raising; the second one raises KeyboardInterrupt at once."""
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may set handlers
        return

    def note(number: int, frame: FrameType | None) -> None:
        if request.asked:
            raise KeyboardInterrupt
        request.asked = True

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

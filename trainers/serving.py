"""The worker's side of `trainers.process`: reads JSON lines on stdin, answers each with one on stdout."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainers.manifest import UserError

PR_SET_PDEATHSIG = 1


def serve(worker: object, explain: Callable[[Exception], str]) -> None:
    """Answer requests by the worker's methods until the other side hangs up; the process is the worker's from here on.

    A request is `{"do": method, argument: …}`. The program's own argument, if there is one, bounds its memory in bytes.
    `explain` makes one line of an exception.
    """
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    limit_memory(int(sys.argv[1]) if len(sys.argv) > 1 else None)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # engines print on stdout; there it would break the protocol
    for line in sys.stdin:
        replies.write(json.dumps(_answer(worker, json.loads(line), explain)) + "\n")
        replies.flush()


def _answer(worker: object, request: dict[str, Any], explain: Callable[[Exception], str]) -> dict[str, Any]:
    """Carry out one request. Whatever goes wrong is the answer: this is the process border."""
    do: Callable[..., dict[str, Any]] = getattr(worker, request.pop("do"))
    try:
        return do(**request)
    except UserError as error:
        return {"error": str(error)}
    except Exception as error:  # what runs here may raise anything
        return {"error": explain(error)}


def die_with_parent() -> None:
    """A worker may be stopped when its parent is killed; the kernel then ends it (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == 1:
            sys.exit(1)


def limit_memory(limit: int | None) -> None:
    """Make allocations beyond `limit` bytes fail, so that one worker cannot take the machine down."""
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def peak_bytes() -> int:
    """The process's peak resident memory. Linux's VmHWM: unlike ru_maxrss it starts afresh with the program."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak

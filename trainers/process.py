"""The parent's side of a worker: start it, ask it, stop it while others are timed, and say how it died."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from typing import IO, Any


class WorkerError(Exception):
    """The worker answered with an error, died or did not answer. The message is one line: the row's reason."""


class Worker:
    """A child process that speaks JSON lines. It sleeps (SIGSTOP) except while it is asked something."""

    def __init__(self, module: str, *, threads: int, memory_bytes: int | None = None) -> None:
        """Start `python -m module`, which serves. `memory_bytes` bounds its private memory; None leaves it free."""
        command = [sys.executable, "-m", module, *([str(memory_bytes)] if memory_bytes else [])]
        # Thread pools read these when their library is loaded, before anyone can ask them.
        counts = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, bufsize=0,
            env={**os.environ, **counts}, start_new_session=True,
        )  # fmt: skip
        self._pending = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, do: str, *, timeout: float, **arguments: Any) -> dict[str, Any]:
        """Wake the worker, ask, wait for its answer and put it back to sleep.

        Raises WorkerError when it answers with an error, dies, or does not answer within `timeout` seconds.
        """
        self._signal(signal.SIGCONT)
        try:
            self._write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            reply: dict[str, Any] = json.loads(self._read_line(do, timeout))
        except (BrokenPipeError, EOFError):
            raise WorkerError(self._cause_of_death()) from None
        self._signal(signal.SIGSTOP)
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply

    def close(self) -> None:
        """End the worker and everything it started. Harmless when it is already dead."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def _write(self, line: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line)

    def _read_line(self, do: str, timeout: float) -> bytes:
        assert self._process.stdout is not None
        handle, deadline = self._process.stdout.fileno(), time.monotonic() + timeout
        while b"\n" not in self._pending:
            ready, _, _ = select.select([handle], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self._signal(signal.SIGKILL)
                raise WorkerError(f"hung: no answer to {do!r} within {timeout:g} s")
            block = os.read(handle, 1 << 20)
            if not block:
                raise EOFError
            self._pending += block
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _signal(self, number: int) -> None:
        """Signal the worker's whole group: compilers start helpers, which must sleep and end with it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _cause_of_death(self) -> str:
        status = self._process.wait()
        if status >= 0:
            return f"crashed: exit status {status}{self._last_words()}"
        name = signal.Signals(-status).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"crashed: {name}{hint}{self._last_words()}"

    def _last_words(self) -> str:
        """The last line the worker left on stderr."""
        self._stderr.seek(0)
        lines = self._stderr.read()[-4000:].decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f": {last[:200]}" if last else ""

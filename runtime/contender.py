"""Contender: one artifact in one engine, its worker process, and what has been measured of it so far."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from runtime.check import Check
from runtime.results import Cell, Measurement
from runtime.targets import Target
from trainers.process import Worker, WorkerError

AT_LEAST, AT_MOST = 3, 1000  # samples a turn: enough for a median, few enough to keep them all
WARM_S = 1.0  # bound of the warm-up before the first round


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to measure. `seconds` is the time for one cell over all rounds; `timeout` bounds one load or turn."""

    backends: tuple[str, ...]
    batches: tuple[int, ...] = (1,)
    device: str = "cpu"
    threads: int = 1
    rounds: int = 10
    seconds: float = 2.0
    timeout: float = 300.0
    options: Mapping[str, str] = field(default_factory=dict)
    factories: tuple[str, ...] = ()  # FILE.py:FACTORY of the user's own models that may be run
    memory_bytes: int | None = None  # bound on a worker's private memory


class Contender:
    """Loads, takes turns and becomes a row; whatever kills its worker becomes that row's reason."""

    def __init__(self, target: Target, backend: str, options: dict[str, str], plan: Plan) -> None:
        self.target, self.backend, self.options = target, backend, options
        self._plan = plan
        self._worker: Worker | None = None
        self._row: Measurement | None = None
        self._turns: list[tuple[float, ...]] = []

    def load(self, batch: int) -> None:
        """Begin a row: load for this batch size, check the outputs, warm up."""
        cell = Cell(artifact=self.target.subject.name, backend=self.backend, device=self._plan.device, batch=batch,
                    threads=self._plan.threads, options=self.options)  # fmt: skip
        self._turns = []
        self._row = Measurement(cell=cell, error=self.target.refuses(batch))
        if self._row.error is None:
            with self._errors():
                self._start()
                loaded = self._ask("load", batch=batch, input=self.target.input_shape)
                check = msgspec.convert(loaded.pop("check"), Check | None)
                self._note(check=check, **loaded)
                if check is not None and check.reason:
                    self._note(error=f"wrong outputs: {check.reason}")
                else:
                    self._ask("warm", seconds=WARM_S)

    def turn(self) -> None:
        """Take this round's samples, unless the row has failed already."""
        if self._measured.error is None:
            with self._errors():
                seconds = self._plan.seconds / self._plan.rounds
                reply = self._ask("turn", seconds=seconds, at_least=AT_LEAST, at_most=AT_MOST)
                self._turns.append(tuple(sample / 1e9 for sample in reply["samples_ns"]))
                self._note(peak_bytes=reply["peak_bytes"])

    def finish(self) -> Measurement:
        """The row, with the samples of every round taken."""
        self._note(rounds_s=tuple(self._turns))
        return self._measured

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    @property
    def _measured(self) -> Measurement:
        assert self._row is not None, "load comes first"
        return self._row

    def _start(self) -> None:
        """Start the worker, once; again only after it failed at another batch size."""
        if self._worker is not None:
            return
        self._worker = Worker("runtime.worker", threads=self._plan.threads, memory_bytes=self._plan.memory_bytes)
        self._ask("open", path=str(self.target.found.path), backend=self.backend, device=self._plan.device,
                  threads=self._plan.threads, options=self.options, factories=list(self._plan.factories))  # fmt: skip

    def _ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        assert self._worker is not None
        return self._worker.ask(do, timeout=self._plan.timeout, **arguments)

    def _note(self, **changes: Any) -> None:
        self._row = msgspec.structs.replace(self._measured, **changes)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except WorkerError as error:
            self._note(error=str(error))
            self.close()  # whatever state it is in: the next batch size starts afresh

"""Contender: one artifact in one engine, its worker process, and what has been measured of it so far."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from runtime.attestation import Ran, shortfall
from runtime.check import Check
from runtime.plan import FEW_CHECKED, WARM_S, Plan
from runtime.results import Cell, Measurement
from runtime.targets import Target
from trainers.process import Worker, WorkerError


class Contender:
    """Loads, takes turns and becomes a row in each regime; whatever kills its worker becomes those rows' reason."""

    module = "runtime.worker"  # the worker's program

    def __init__(
        self, target: Target, backend: str, options: dict[str, str], plan: Plan, *, threads: int, twin: bool = False
    ) -> None:
        self.target, self.backend, self.options, self.twin = target, backend, options, twin
        self._plan, self._threads = plan, threads
        self._worker: Worker | None = None
        self._rows: dict[str, Measurement] = {}
        self._turns: dict[str, list[tuple[float, ...]]] = {}
        self._processes: dict[str, list[int]] = {}  # that took those turns
        self._is_open = False  # the worker's artifact
        self._is_loaded = False  # the worker, for these rows
        self.rounds = 0  # that the rows take part in; 0 until that is settled
        self.sample_s = 0.0  # that a sample took at the end of the warm-up, in the slowest regime

    def cell(self, batch: int, regime: str) -> Cell:
        """The row's name."""
        return Cell(artifact=self.target.subject.name, backend=self.backend, device=self._plan.device, batch=batch,
                    threads=self._threads, options=self.options, regime=regime, twin=self.twin)  # fmt: skip

    def load(self, batch: int, heat: int, known: Sequence[Measurement] = ()) -> None:
        """Begin rows: load for this batch size, check the outputs, warm up.

        Rows that an interrupted run has left, `known`, go on where they stopped.
        """
        fresh = [Measurement(cell=self.cell(batch, regime), heat=heat) for regime in self._plan.regimes]
        begun = [next((k for k in known if (k.cell, k.heat) == (row.cell, heat)), row) for row in fresh]
        self._rows = {row.cell.regime: row for row in begun}
        self._turns = {row.cell.regime: list(row.rounds_s) for row in begun}
        self._processes = {row.cell.regime: list(row.processes) for row in begun}
        self.rounds, self.sample_s = max(row.rounds for row in begun), 0.0
        self._process = max((1 + process for row in begun for process in row.processes), default=0)
        refusal = self.target.refuses(batch)
        if refusal:
            self._note(error=refusal)
        unknown = any(row.ran is None and row.error is None for row in self._rows.values())
        self._is_loaded = not self.done or unknown  # all rounds may be there, and what ran not yet asked
        if not self._is_loaded:
            return
        with self._errors():
            self._note(**self._load(batch, self._plan.checked))
        self.warm()

    def restart(self) -> None:
        """Have a new process, which is yet to load. It ends with the thread that calls this."""
        self.close()
        self._process += 1
        self._start()

    def reload(self) -> None:
        """Load in the new process; what that takes is known from the first, which may have found nothing compiled."""
        batch = next(iter(self._rows.values())).cell.batch
        with self._errors():
            self._load(batch, FEW_CHECKED)

    def _load(self, batch: int, checked: int | None) -> dict[str, Any]:
        """Have a session in the worker; what it said of itself. Raises WorkerError also when its outputs are wrong."""
        self._start()
        if not self._is_open:
            self._ask("open", path=str(self.target.found.path), backend=self.backend, device=self._plan.device,
                      threads=self._threads, options=self.options, factories=list(self._plan.factories))  # fmt: skip
            self._is_open = True
        loaded = self._ask("load", batch=batch, input=self.target.input_shape, checked=checked)
        loaded["check"] = msgspec.convert(loaded["check"], Check | None)
        if loaded["check"] is not None and loaded["check"].reason:
            self._note(**loaded)
            raise WorkerError(f"wrong outputs: {loaded['check'].reason}")
        return loaded

    def warm(self) -> None:
        """Run in every regime until the times are steady."""
        with self._errors():
            for regime, row in self._rows.items():
                if row.error is None:
                    warmed = self._ask("warm", regime=regime, seconds=WARM_S)
                    self.sample_s = max(self.sample_s, warmed.pop("sample_s"))
                    self._note(regime, **{**warmed, "steady": warmed["steady"] and row.steady is not False})

    @property
    def done(self) -> bool:
        """Whether nothing is left to do for these rows."""
        return all(row.error is not None or 0 < self.rounds <= len(self._turns[regime])
                   for regime, row in self._rows.items())  # fmt: skip

    @property
    def failed(self) -> bool:
        return all(row.error is not None for row in self._rows.values())

    @property
    def rounds_done(self) -> int:
        return min(map(len, self._turns.values()))

    @property
    def peak_bytes(self) -> int:
        """What the worker took at most so far."""
        return max((row.peak_bytes or 0 for row in self._rows.values()), default=0)

    def settle(self, rounds: int) -> None:
        """Take part in so many rounds."""
        self.rounds = rounds
        self._note(rounds=rounds)

    def turn(self) -> None:
        """Take this round's samples in every regime, unless the rows have failed already."""
        plan = self._plan
        for regime in self._rows:
            if self._rows[regime].error is None:
                with self._errors():
                    reply = self._ask("turn", regime=regime, seconds=plan.seconds / self.rounds,
                                      at_least=plan.at_least,
                                      at_most=max(plan.at_least, plan.at_most // self.rounds))  # fmt: skip
                    self._turns[regime].append(tuple(sample / 1e9 for sample in reply.pop("samples_ns")))
                    self._processes[regime].append(self._process)
                    most = max(reply["peak_bytes"], self._rows[regime].peak_bytes or 0)
                    self._note(regime, **{**reply, "peak_bytes": most})

    def attest(self) -> None:
        """Note what the session of these rows executes, and whether that is what the artifact's record says."""
        if not self._is_loaded or all(row.error for row in self._rows.values()):
            return
        with self._errors():
            ran = msgspec.convert(self._ask("attest"), Ran)
            record, asked = self.target.found.record, self.options.get("precision")
            self._note(ran=ran, shortfall=shortfall(record, ran, rest=asked) if record else None)

    def rows(self) -> list[Measurement]:
        """The rows so far."""
        return [
            msgspec.structs.replace(row, rounds_s=tuple(self._turns[regime]), processes=tuple(self._processes[regime]))
            for regime, row in self._rows.items()
        ]

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _start(self) -> None:
        """Start the worker, once; again only after it failed at another batch size."""
        if self._worker is None:
            self._worker = Worker(self.module, threads=self._threads, memory_bytes=self._plan.memory_bytes)
            self._is_open = False

    def _ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        assert self._worker is not None
        return self._worker.ask(do, timeout=self._plan.timeout, **arguments)

    def _note(self, regime: str | None = None, **changes: Any) -> None:
        """Change the row of one regime, or all of them."""
        for name in self._rows if regime is None else (regime,):
            self._rows[name] = msgspec.structs.replace(self._rows[name], **changes)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except WorkerError as error:
            self._note(error=str(error))
            self.close()  # whatever state it is in: the next batch size starts afresh

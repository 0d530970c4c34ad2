"""Profiling one artifact in one engine: ask its worker, join the answer to the file, and write it all down."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from export.costs import Costs
from runtime import fastest, layers, profilers, roofline, targets
from runtime.bench import memory_limit
from runtime.check import Check, home
from runtime.identity import identity
from runtime.layers import Row
from runtime.profilers import Taken
from runtime.results import engine_name
from runtime.roofline import Roofline
from runtime.targets import Target
from trainers import manifest, profiling
from trainers.manifest import CheckFailed, Environment, UserError, write_atomic
from trainers.process import Worker, WorkerError

TIMEOUT_S = 600.0  # of one answer
WARM_S = 1.0  # bound of the warm-up


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is to be profiled, and how."""

    target: Target
    backend: str
    device: str
    threads: int
    batch: int = 1
    runs: int = 20
    options: Mapping[str, str] = field(default_factory=dict)
    factories: tuple[str, ...] = ()  # FILE.py:FACTORY of the user's own models that may be run

    @property
    def stem(self) -> Path:
        """What the names of all files begin with: in the model's folder, or beside a file that has no record."""
        name = [
            self.target.found.name,
            self.backend,
            *(f"{key}={value}" for key, value in sorted(self.options.items())),
        ]
        name += [self.device] * (self.device != "cpu")
        name += [f"b{self.batch}"] * (self.batch != 1) + [f"t{self.threads}"]
        return home(self.target.found.path) / "profile" / "-".join(name)

    @property
    def record(self) -> Path:
        """Where the answer is written."""
        return self.stem.with_name(f"{self.stem.name}.json")

    @property
    def is_answered(self) -> bool:
        """Whether a profile of this very file lies there, that this machine took."""
        found = Costs.find(self.record)
        here = manifest.environment()
        return found is not None and (found.sha256, found.device) == (self.target.subject.sha256, self.device) and (
            (identity(found.environment), found.environment.packages) == (identity(here), here.packages)
        )  # fmt: skip

    @property
    def title(self) -> str:
        """Artifact, engine, device, threads and batch size."""
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.target.found.name} in {self.engine} on {self.device}, {threads}, batch {self.batch}"

    @property
    def engine(self) -> str:
        return engine_name(self.backend, self.options)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The answer. `plain_s` is the median inference without a profiler; `roof` is None where none was measured."""

    question: Question
    rows: list[Row]
    plain_s: float
    roof: Roofline | None
    environment: Environment
    files: tuple[str, ...]  # that the engine's profiler left

    def costs(self) -> Costs:
        """The profile as `export` reads it."""
        asked = self.question
        return Costs(
            sha256=asked.target.subject.sha256, engine=asked.engine, device=asked.device, threads=asked.threads,
            batch=asked.batch, layers=tuple(row.cost() for row in self.rows), environment=self.environment,
        )  # fmt: skip

    def save(self) -> list[str]:
        """Write the record, the CSV file and the picture beside what the profiler left; returns all paths."""
        from runtime.report import profile, roof

        stem, record = self.question.stem, self.question.record
        table, picture = (stem.with_name(f"{stem.name}{suffix}") for suffix in (".csv", ".png"))
        self.costs().save(record)
        write_atomic(table, profile.render(self.rows).encode())
        written = [record, table]
        if self.roof and roof.draw(self.rows, self.roof, self.question.threads, self.question.title, picture):
            written.append(picture)
        return [*map(str, written), *self.files]


def of_fastest(name: str, artifacts: Path, device: str, batch: int | None = None) -> Question:
    """The form of a model that this machine's newest report found fastest, in its engine and with its settings.

    At the report's smallest batch size by default. Rows of engines that have no profiler are passed over. Raises
    UserError when there is no such model or report, and CheckFailed when none of the report's rows keeps its promise.
    """
    home = targets.model_folder(name, artifacts)
    if home is None:
        raise UserError(f"no model {name!r} in {artifacts}; to profile a file, name its engine with --backend")
    report = fastest.newest(artifacts, home.resolve().name, device)
    if report is None:
        raise UserError(f"no report of {name} on this machine's {device} says which form is fastest; name an engine "
                        f"with --backend, or make a report with: python -m runtime bench {name}")  # fmt: skip
    batch = batch or min(report.plan.batches)
    for row, path in fastest.rows(report, home, batch, report.plan.max_drop):
        cell = row.cell
        if cell.backend in profilers.names():
            (target,), _ = targets.resolve([str(path)], artifacts, None)
            return Question(target=target, backend=cell.backend, device=device, threads=cell.threads, batch=batch,
                            options=cell.options)  # fmt: skip
    raise CheckFailed(f"{name}: the report of {report.environment.time} has no verified row at batch {batch} in an "
                      "engine with a profiler, whose file is still the same")  # fmt: skip


def take(question: Question, environment: Environment, artifacts: Path) -> Profile:
    """Profile in a worker process. Raises CheckFailed when the engine cannot, or computes something else."""
    taken, plain = _ask(question, environment)
    found = question.target.found
    figures = None
    if found.kind == "onnx":
        from export.inspect.model import read

        figures = layers.Figures(read(found.path, weights=False), question.batch)
    roof = roofline.find(artifacts, environment) if question.device == "cpu" else None
    rows = layers.join(taken.kernels, figures, roof, question.threads)
    return Profile(question=question, rows=rows, plain_s=plain, roof=roof, environment=environment, files=taken.files)


def _ask(question: Question, environment: Environment) -> tuple[Taken, float]:
    """The engine's profile, and the median seconds of an inference without it."""
    target = question.target
    if refused := target.refuses(question.batch):
        raise UserError(f"--batch {question.batch}: {refused}; give that")
    profiling.quiet()
    question.stem.parent.mkdir(exist_ok=True)
    limit = memory_limit(environment, question.device)
    with contextlib.closing(Worker("runtime.worker", threads=question.threads, memory_bytes=limit)) as worker:
        try:
            worker.ask("open", path=str(target.found.path), backend=question.backend, device=question.device,
                       threads=question.threads, options=dict(question.options), factories=list(question.factories),
                       timeout=TIMEOUT_S)  # fmt: skip
            loaded = worker.ask("load", batch=question.batch, input=target.input_shape, timeout=TIMEOUT_S)
            check = msgspec.convert(loaded["check"], Check | None)
            if check is not None and check.reason:
                raise CheckFailed(f"{question.title}: wrong outputs: {check.reason}")
            worker.ask("warm", regime="device", seconds=WARM_S, timeout=TIMEOUT_S)
            reply = worker.ask("profile", runs=question.runs, stem=str(question.stem), timeout=TIMEOUT_S)
        except WorkerError as error:
            raise CheckFailed(f"{question.title}: {error}") from None
    plain = statistics.median(reply.pop("samples_ns")) / 1e9
    return msgspec.convert(reply, Taken), plain

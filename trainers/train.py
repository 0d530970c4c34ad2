"""The training loop: a model, its recipe and its data in; a checkpoint on disk out."""

from __future__ import annotations

import itertools
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import torch
from torch import Tensor, nn

from trainers.allocator import keep_freed_memory
from trainers.batches import Batch, evaluation_batches, steps_per_epoch, training_batches
from trainers.checkpoint import NAME, Checkpoint, Metrics, Point, Quantization, keep_previous, write_weights
from trainers.cli import leads, progress
from trainers.dataset import Dataset
from trainers.diagnosis import explain
from trainers.distributed import ALONE, World
from trainers.evaluate import Score, evaluate
from trainers.initialise import initialise, some_images
from trainers.interrupt import deferred
from trainers.learner import Learner, resized
from trainers.manifest import CheckFailed, File, Struct, UserError, environment, invocation, probe
from trainers.optim import learning_rate
from trainers.spec import ModelSpec, Option, Precision, Preprocess, Recipe, legs_of
from trainers.state import TrainingState, clear_states, load_tensors, newest_state, save_state

if TYPE_CHECKING:
    from trainers.profiling import Profiler

EVALUATION_BATCH = 128
SHOW_EVERY_S = 2.0  # reading the loss waits for the device, so the bar shows it only now and then


class Job(Struct, frozen=True, kw_only=True):
    """What is to be trained."""

    model: str
    options: dict[str, Option]
    recipe: Recipe
    input_shape: tuple[int, int, int]
    start: Callable[[], nn.Module] | None = None  # makes the module to go on from, instead of a fresh one
    started_from: File | None = None  # the weights that it has then
    qat: Quantization | None = None


def pick_device(name: str, world: World = ALONE) -> torch.device:
    """`auto`, `cpu` or `cuda` as a device, of several GPUs this process's own.

    Raises UserError when CUDA is asked for and not there, or has fewer GPUs than processes.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no CUDA GPU here; use --device cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu" or world.size == 1:
        return torch.device(name)
    if world.local_size > (gpus := torch.cuda.device_count()):
        raise UserError(
            f"{world.local_size} processes on this machine and {gpus} GPUs; give torchrun --nproc-per-node {gpus}, or "
            "--device cpu"
        )
    return torch.device(name, world.local_rank)


def fit(recipe: Recipe, device: torch.device) -> Recipe:
    """A default recipe, fitted to the device.

    On a GPU: compiled, and without the rewrites, which were made for CPUs. bf16 only where the hardware computes it.
    """
    precision: Precision = recipe.precision
    if device.type == "cuda":
        if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            precision = "fp16"
        return msgspec.structs.replace(recipe, precision=precision, compile=True, rewrites="none")
    if precision == "bf16" and not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        precision = "fp32"
    return msgspec.structs.replace(recipe, precision=precision)


def train(
    job: Job,
    spec: ModelSpec,
    data: Dataset,
    device: torch.device,
    folder: Path,
    *,
    resume: bool,
    world: World = ALONE,
    profiler: Profiler | None = None,
) -> Checkpoint:
    """Train to the recipe's end and leave `checkpoint.safetensors` and its record in `folder`.

    Every process of a joined world calls it; the first reads and writes the files. With `resume` an interrupted run
    goes on, and a finished one's checkpoint is returned as it is. Raises CheckFailed when the loss stops being finite,
    UserError when `resume` finds a run with other settings.
    """
    run = Run(job, spec, data, device, folder, world)
    if world.writer:
        probe(folder)
    if not resume:
        run.forget()
    elif (done := run.resume()) is not None:
        return done
    if profiler:
        profiler.attach(run)
    score = run.conclude() if run.seen and run.step in run.pauses() else None  # it was interrupted in an epoch's test
    while run.step < run.steps:
        score = run.epoch()
    assert score is not None, "a state is left only before its test"
    return run.finish(score)


class Run:
    """One training run and where it stands: after `step` of `steps`, `seconds` of them spent in training steps."""

    def __init__(
        self, job: Job, spec: ModelSpec, data: Dataset, device: torch.device, folder: Path, world: World = ALONE
    ) -> None:
        self.world = world
        self.job, self.spec, self.data, self.device, self.folder = job, spec, data, device, folder
        self.recipe = recipe = job.recipe
        if recipe.keep_memory and device.type == "cpu":
            keep_freed_memory()
        if recipe.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
            torch.use_deterministic_algorithms(True)
        torch.manual_seed(recipe.seed)
        self.per_epoch = steps_per_epoch(data.splits["train"], recipe)
        sizes = legs_of(recipe)
        self.sizes = [leg.size for leg in sizes] or [job.input_shape[1]]
        lengths = [leg.epochs for leg in sizes] or [recipe.epochs]
        steps = [recipe.steps] if recipe.steps else [max(1, round(epochs * self.per_epoch)) for epochs in lengths]
        self.ends = list(itertools.accumulate(steps))  # the last step of each leg
        self.steps = self.ends[-1]
        self.step, self.seconds, self.leg = 0, 0.0, 0
        if job.start is None:
            plain = self._build(self._shape(0))
            initialise(plain, recipe.init, lambda: some_images(data, self._shape(0)))
        else:
            plain = job.start()
        self._learn(plain)
        self.sums = torch.zeros(2, device=device, dtype=torch.float64)  # the epoch's loss and hits, on the device
        self.seen = 0  # images behind these sums
        self.train_loss = math.nan
        self.curve: list[Point] = []
        self.advance: Callable[[Iterator[Batch]], None] = self._advance  # a profiler puts itself in its place

    def pauses(self) -> list[int]:
        """The steps after which an epoch, a leg or the run ends, in order."""
        return sorted({*range(self.per_epoch, self.steps, self.per_epoch), *self.ends})

    def epoch(self) -> Score:
        """Train to the end of the epoch (or leg, or run), save the state, test, and print a line about it."""
        if self.step == self.ends[self.leg]:
            self._next_leg()
        number, start = divmod(self.step, self.per_epoch)
        end = min(self.ends[self.leg], self.step - start + self.per_epoch)
        first, clock = self.step, self.seconds
        batches = training_batches(
            self.data.splits["train"], self.preprocess, self.recipe, number, start, self.device, self.world
        )
        self.learner.module.train()
        self._steps(batches, end, f"epoch {number + 1}")
        self._mean_loss()  # what is not finite is not saved
        self._save()  # also after the last step: the test may be interrupted
        return self.conclude(f"{1e3 * (self.seconds - clock) / (self.step - first):.1f} ms/step  ")

    def conclude(self, pace: str = "") -> Score:
        """Test what an epoch has made, note it and print a line about it; the next epoch counts anew."""
        number = (self.step - 1) // self.per_epoch
        self.train_loss = self._mean_loss()
        accuracy = 100 * self.sums[1].item() / self.seen
        self.sums.zero_()
        self.seen = 0
        score = self._test()
        self.curve.append(
            Point(
                step=self.step,
                seconds=self.seconds,
                size=self.sizes[self.leg],
                train_loss=self.train_loss,
                test_loss=score.loss,
                test_top1=score.top1,
            )
        )
        size = f"{self.sizes[self.leg]} px  " if len(self.sizes) > 1 else ""
        say(
            f"epoch {number + 1}  {size}step {self.step}/{self.steps}  {self.seconds:.1f} s  "
            f"loss {self.train_loss:.4f}  train {accuracy:.2f}%  {pace}test loss {score.loss:.4f}  "
            f"test {score.top1:.2f}%"
        )
        return score

    def finish(self, score: Score) -> Checkpoint:
        """Write weights, then the record; then the states of the interrupted run have served."""
        images = self.step * min(self.recipe.batch_size, len(self.data.splits["train"]))
        metrics = Metrics(
            split="test",
            images=score.images,
            loss=score.loss,
            top1=score.top1,
            top5=score.top5,
            train_loss=self.train_loss,
            images_per_second=images / self.seconds,
            peak_memory_bytes=peak_memory(self.device),
        )
        weights = self.learner.weights()
        return self.world.shared(lambda: self._write(weights, metrics), Checkpoint)

    def _write(self, weights: dict[str, Tensor], metrics: Metrics) -> Checkpoint:
        buffers = {name for name, _ in self.learner.result.named_buffers()}
        keep_previous(self.folder)
        checkpoint = Checkpoint(
            model=self.job.model,
            options=self.job.options,
            # Counted in the weights: a rewritten module holds only the live part of a kernel as a parameter.
            parameters=sum(tensor.numel() for name, tensor in weights.items() if name not in buffers),
            input_shape=self.job.input_shape,
            classes=self.data.classes,
            preprocess=self.preprocess,
            data=self.data.info,
            recipe=self.recipe,
            epochs=-(-self.step // self.per_epoch),
            steps=self.step,
            seconds=self.seconds,
            metrics=metrics,
            files=(write_weights(weights, self.folder / f"{NAME}.safetensors"),),
            environment=environment(),
            curve=tuple(self.curve),
            started_from=self.job.started_from,
            qat=self.job.qat,
            processes=self.world.size,
            command=invocation(),
        )
        checkpoint.save(self.folder / f"{NAME}.json")
        clear_states(self.folder)
        return checkpoint

    def forget(self) -> None:
        """Remove the states of earlier runs."""
        if self.world.writer:
            clear_states(self.folder)

    def resume(self) -> Checkpoint | None:
        """Restore the newest whole state; the checkpoint of a finished run is returned instead."""
        state: TrainingState | None = self.world.shared(self._newest, TrainingState | None)
        if state is None:
            record = self.folder / f"{NAME}.json"
            finished = self.world.shared(lambda: Checkpoint.load(record) if record.is_file() else None,
                                         Checkpoint | None)  # fmt: skip
            if finished is not None and not self._differences(finished):
                say(f"already finished: {record}")
                return finished
            say("nothing to resume: training from the start")
            return None
        if differences := self._differences(state):
            raise UserError(
                f"--resume: the interrupted run had other settings ({'; '.join(differences)}); give the same ones, or "
                "train afresh without --resume"
            )
        if state.leg:
            self.leg = state.leg
            self._learn(self._build(self._shape(state.leg)))
        tensors = load_tensors(state, self.folder, self.world)
        self.learner.restore(tensors)
        self.sums.copy_(tensors["sums"])
        if self.learner.scaler.is_enabled():
            self.learner.scaler.load_state_dict(state.scaler)
        self.step, self.seconds, self.seen, self.curve = state.step, state.seconds, state.seen, list(state.curve)
        say(f"resumed at step {state.step}")
        return None

    def _newest(self) -> TrainingState | None:
        state, complaints = newest_state(self.folder)
        for complaint in complaints:
            say(f"note: {complaint}")
        return state

    def _build(self, shape: tuple[int, int, int]) -> nn.Module:
        """The plain module for images of this shape, on the CPU, with fresh weights."""
        options = self.job.options | ({"size": shape[1]} if "size" in self.job.options else {})
        return self.spec.build(num_classes=len(self.data.classes), input_shape=shape, **options)

    def _learn(self, plain: nn.Module) -> None:
        """Make `plain` the module that is trained from here on, at the leg's image size."""
        shape = self._shape(self.leg)
        self.learner = Learner(plain, self.recipe, self.device, shape, self.world)
        self.preprocess = Preprocess(
            size=shape[1:], resize=max(shape[1:]), mean=self.data.mean, std=self.data.std
        )  # whole images, scaled to the model's size

    def _shape(self, leg: int) -> tuple[int, int, int]:
        channels, height, width = self.job.input_shape
        return (channels, self.sizes[leg], self.sizes[leg]) if len(self.sizes) > 1 else (channels, height, width)

    def _next_leg(self) -> None:
        """Carry the weights over to the next image size; the optimizer starts without memory."""
        self.leg += 1
        plain = self._build(self._shape(self.leg))
        plain.load_state_dict(resized(self.learner.weights(everywhere=True), plain))
        self._learn(plain)
        say(f"from step {self.step} on: images of {self.sizes[self.leg]} px")

    def _steps(self, batches: Iterator[Batch], end: int, title: str) -> None:
        """Train up to step `end`; apart from a saved state, nothing here waits for the device."""
        shown_at = time.monotonic()
        saved = self.sums.clone(), self.seen
        with progress() as bars, deferred() as stop:
            bar = bars.add_task(title, total=end, completed=self.step)
            while self.step < end:
                began = time.perf_counter()
                self.advance(batches)
                self.seconds += time.perf_counter() - began
                if self.world.writer and time.monotonic() - shown_at > SHOW_EVERY_S:
                    bars.update(bar, description=f"{title}  loss {self._mean_loss():.3f}")
                    shown_at = time.monotonic()
                bars.update(bar, completed=self.step)
                due = self.recipe.save_every and self.step % self.recipe.save_every == 0 and self.step < end
                stopping = self.world.any(stop.asked)  # all at the same step, or some would wait for ever
                if due or stopping:
                    loss = self._mean_loss(*saved)
                    self._save()
                    say(f"step {self.step}/{self.steps}  loss {loss:.4f}  state saved")
                    saved = self.sums.clone(), self.seen
                if stopping:
                    raise KeyboardInterrupt
            if self.device.type == "cuda":
                began = time.perf_counter()
                torch.cuda.synchronize()
                self.seconds += time.perf_counter() - began

    def _advance(self, batches: Iterator[Batch]) -> None:
        images, labels = next(batches)
        if self.job.qat is not None:
            cast(Any, self.learner.plain).progress(self.step / self.steps)
        rate = learning_rate(self.recipe, self._scheduled(), self.steps)
        self.sums += self.learner.step(images, labels, rate)
        self.seen += len(labels) * self.world.size
        self.step += 1

    def _scheduled(self) -> float:
        """Where the schedule stands, in steps of equal work: a step on larger images moves it further.

        Otherwise the last and largest size, with few steps, would be left with next to no learning rate.
        """
        starts = [0, *self.ends[:-1]]
        area = [size * size for size in self.sizes]
        whole = sum(a * (end - start) for a, start, end in zip(area, starts, self.ends, strict=True))
        before = sum(area[leg] * (self.ends[leg] - starts[leg]) for leg in range(self.leg))
        return self.steps * (before + area[self.leg] * (self.step - starts[self.leg])) / whole

    def _mean_loss(self, sums: Tensor | None = None, seen: int = 0) -> float:
        """The epoch's mean loss so far, or since these earlier sums.

        Raises CheckFailed when it is not finite, naming the step and the parameter.
        """
        total = self.sums[0].item() - (0.0 if sums is None else sums[0].item())
        loss = total / (self.seen - seen)
        if not math.isfinite(loss):
            learner = self.learner
            raise CheckFailed(explain(learner.guard, learner.plain, learner.optimizer, self.recipe, self.step))
        return loss

    def _save(self) -> None:
        """Write a training state that `resume` can go on from."""
        scaler = self.learner.scaler
        fields: dict[str, Any] = {
            "model": self.job.model,
            "options": self.job.options,
            "recipe": self.recipe,
            "data": self.data.info,
            "step": self.step,
            "seen": self.seen,
            "seconds": self.seconds,
            "scaler": scaler.state_dict() if scaler.is_enabled() else {},
            "leg": self.leg,
            "curve": tuple(self.curve),
            "started_from": self.job.started_from,
            "input_shape": self.job.input_shape,
            "num_classes": len(self.data.classes),
            "qat": self.job.qat,
        }
        tensors = self.learner.state() | {"sums": self.sums}
        if self.world.writer:
            save_state(self.folder, fields, tensors)

    def _test(self) -> Score:
        split = self.data.splits["test"]
        batch = EVALUATION_BATCH * self.world.size
        self.world.agree(self.learner.result.buffers())  # running statistics: the writer's, which are also saved
        with progress() as bars:
            batches = evaluation_batches(split, self.preprocess, batch, self.device, world=self.world)
            counted = self._laid_out(bars.track(batches, total=-(-len(split) // batch), description="test"))
            return evaluate(self.learner.judged, counted, self.device, self.recipe.precision, self.world)

    def _laid_out(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for images, labels in batches:
            yield images.contiguous(memory_format=self.learner.layout), labels

    def _differences(self, old: TrainingState | Checkpoint) -> list[str]:
        """What differs between this run and an earlier one, as `name: earlier, now`."""
        pairs: dict[str, tuple[Any, Any]] = {"model": (old.model, self.job.model)}
        pairs |= {key: (old.options.get(key), value) for key, value in self.job.options.items()}
        for key in Recipe.__struct_fields__:
            if key != "save_every":  # how often a run is saved does not change it
                pairs[key] = (getattr(old.recipe, key), getattr(self.recipe, key))
        classes = len(old.classes) if isinstance(old, Checkpoint) else old.num_classes
        pairs["input"] = (old.input_shape or self.job.input_shape, self.job.input_shape)
        pairs["classes"] = (classes or len(self.data.classes), len(self.data.classes))
        pairs["weights"] = (_short(old.started_from), _short(self.job.started_from))
        was, now = (msgspec.to_builtins(qat) if qat else {} for qat in (old.qat, self.job.qat))
        pairs |= {f"qat {key}": (was.get(key), now.get(key)) for key in was | now}
        other_images = ["data: other images"] if old.data.splits != self.data.info.splits else []
        return other_images + [f"{key}: {was}, now {now}" for key, (was, now) in pairs.items() if was != now]


def _short(file: File | None) -> str | None:
    """A file's content in a few letters."""
    return file.sha256[:12] if file else None


def say(line: str) -> None:
    """A line about the run, on stderr, where progress belongs."""
    if leads():
        print(line, file=sys.stderr, flush=True)


def peak_memory(device: torch.device) -> int:
    """Peak bytes: allocated on the GPU, or resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

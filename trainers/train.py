"""The training loop: a model, its recipe and its data in; a checkpoint on disk out."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.batches import Batch, evaluation_batches, steps_per_epoch, training_batches
from trainers.checkpoint import NAME, Checkpoint, Metrics, keep_previous, write_weights
from trainers.cli import progress
from trainers.dataset import Dataset
from trainers.evaluate import Score, autocast, evaluate
from trainers.manifest import CheckFailed, Struct, UserError, environment
from trainers.optim import learning_rate, make_optimizer
from trainers.spec import ModelSpec, Option, Precision, Preprocess, Recipe
from trainers.state import TrainingState, clear_states, newest_state, restore, save_state

EVALUATION_BATCH = 128
SHOW_EVERY_S = 2.0  # reading the loss waits for the device, so the bar shows it only now and then


class Job(Struct, frozen=True, kw_only=True):
    """What is to be trained."""

    model: str
    options: dict[str, Option]
    recipe: Recipe
    input_shape: tuple[int, int, int]


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` as a device. Raises UserError when CUDA is asked for and not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no CUDA GPU here; use --device cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def fit(recipe: Recipe, device: torch.device) -> Recipe:
    """A default recipe, fitted to the device: compiled on a GPU, bf16 only where the hardware computes it."""
    precision: Precision = recipe.precision
    if device.type == "cuda":
        if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            precision = "fp16"
        return msgspec.structs.replace(recipe, precision=precision, compile=True)
    if precision == "bf16" and not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        precision = "fp32"
    return msgspec.structs.replace(recipe, precision=precision)


def train(job: Job, spec: ModelSpec, data: Dataset, device: torch.device, folder: Path, *, resume: bool) -> Checkpoint:
    """Train to the recipe's end and leave `checkpoint.safetensors` and its record in `folder`.

    With `resume` an interrupted run goes on, and a finished one's checkpoint is returned as it is. Raises CheckFailed
    when the loss stops being finite, UserError when `resume` finds a run with other settings.
    """
    run = Run(job, spec, data, device, folder)
    if not resume:
        clear_states(folder)
    elif (done := run.resume()) is not None:
        return done
    while run.step < run.steps:
        score = run.epoch()
    return run.finish(score)


class Run:
    """One training run and where it stands: after `step` of `steps`, `seconds` of them spent in training steps."""

    def __init__(self, job: Job, spec: ModelSpec, data: Dataset, device: torch.device, folder: Path) -> None:
        self.job, self.data, self.device, self.folder = job, data, device, folder
        self.recipe = recipe = job.recipe
        torch.manual_seed(recipe.seed)
        self.layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        plain = spec.build(num_classes=len(data.classes), input_shape=job.input_shape, **job.options)
        self.plain = plain.to(device).to(memory_format=self.layout)
        self.module = cast(nn.Module, torch.compile(self.plain)) if recipe.compile else self.plain
        self.optimizer = make_optimizer(self.plain, recipe)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        height, width = job.input_shape[1:]
        self.preprocess = Preprocess(
            size=(height, width), resize=min(height, width), mean=data.mean, std=data.std
        )  # whole images, scaled to the model's size
        self.per_epoch = steps_per_epoch(data.splits["train"], recipe)
        self.steps = recipe.steps or recipe.epochs * self.per_epoch
        self.step, self.seconds = 0, 0.0
        self.sums = torch.zeros(2, device=device, dtype=torch.float64)  # the epoch's loss and hits, on the device
        self.seen = 0  # images behind these sums
        self.train_loss = math.nan

    def epoch(self) -> Score:
        """Train to the end of the epoch (or of the run), save the state, test, and print a line about it."""
        number, start = divmod(self.step, self.per_epoch)
        end = min(self.steps, self.step - start + self.per_epoch)
        first, clock = self.step, self.seconds
        batches = training_batches(self.data.splits["train"], self.preprocess, self.recipe, number, start, self.device)
        self.module.train()
        self._steps(batches, end, f"epoch {number + 1}")
        self.train_loss = self._mean_loss()
        accuracy = 100 * self.sums[1].item() / self.seen
        pace = 1e3 * (self.seconds - clock) / (self.step - first)
        self.sums.zero_()
        self.seen = 0
        if self.step < self.steps:
            self._save()
        score = self._test()
        say(
            f"epoch {number + 1}  step {self.step}/{self.steps}  loss {self.train_loss:.4f}  train {accuracy:.2f}%  "
            f"{pace:.1f} ms/step  test loss {score.loss:.4f}  test {score.top1:.2f}%"
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
        keep_previous(self.folder)
        checkpoint = Checkpoint(
            model=self.job.model,
            options=self.job.options,
            parameters=sum(parameter.numel() for parameter in self.plain.parameters()),
            input_shape=self.job.input_shape,
            classes=self.data.classes,
            preprocess=self.preprocess,
            data=self.data.info,
            recipe=self.recipe,
            epochs=-(-self.step // self.per_epoch),
            steps=self.step,
            seconds=self.seconds,
            metrics=metrics,
            files=(write_weights(self.plain.state_dict(), self.folder / f"{NAME}.safetensors"),),
            environment=environment(),
        )
        checkpoint.save(self.folder / f"{NAME}.json")
        clear_states(self.folder)
        return checkpoint

    def resume(self) -> Checkpoint | None:
        """Restore the newest whole state; the checkpoint of a finished run is returned instead."""
        state, complaints = newest_state(self.folder)
        for complaint in complaints:
            say(f"note: {complaint}")
        if state is None:
            record = self.folder / f"{NAME}.json"
            finished = Checkpoint.load(record) if record.is_file() else None
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
        self.sums.copy_(restore(state, self.folder, self.plain, self.optimizer))
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state.scaler)
        self.step, self.seconds, self.seen = state.step, state.seconds, state.seen
        say(f"resumed at step {state.step}")
        return None

    def _steps(self, batches: Iterator[Batch], end: int, title: str) -> None:
        """Train up to step `end`; apart from a saved state, nothing here waits for the device."""
        shown_at = time.monotonic()
        saved = self.sums.clone(), self.seen
        with progress() as bars:
            bar = bars.add_task(title, total=end, completed=self.step)
            while self.step < end:
                began = time.perf_counter()
                self._step(*next(batches))
                self.seconds += time.perf_counter() - began
                if time.monotonic() - shown_at > SHOW_EVERY_S:
                    bars.update(bar, description=f"{title}  loss {self._mean_loss():.3f}")
                    shown_at = time.monotonic()
                bars.update(bar, completed=self.step)
                if self.recipe.save_every and self.step % self.recipe.save_every == 0 and self.step < end:
                    loss = self._mean_loss(*saved)
                    self._save()
                    say(f"step {self.step}/{self.steps}  loss {loss:.4f}  state saved")
                    saved = self.sums.clone(), self.seen
            if self.device.type == "cuda":
                began = time.perf_counter()
                torch.cuda.synchronize()
                self.seconds += time.perf_counter() - began

    def _step(self, images: Tensor, labels: Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.step, self.steps)
        with autocast(self.device, self.recipe.precision):
            logits = self.module(images.contiguous(memory_format=self.layout))
            loss = F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        self.scaler.scale(loss).backward()
        if self.recipe.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.plain.parameters(), self.recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        hits = (logits.detach().argmax(1) == labels).sum()
        self.sums += torch.stack([loss.detach().double() * len(labels), hits.double()])
        self.seen += len(labels)
        self.step += 1

    def _mean_loss(self, sums: Tensor | None = None, seen: int = 0) -> float:
        """The epoch's mean loss so far, or since these earlier sums.

        Raises CheckFailed when it is not finite: such weights are not worth keeping.
        """
        total = self.sums[0].item() - (0.0 if sums is None else sums[0].item())
        loss = total / (self.seen - seen)
        if not math.isfinite(loss):
            raise CheckFailed(
                f"the loss is {loss} at or before step {self.step}; train again with a smaller rate, for example "
                "--set lr=1e-4, or with --precision fp32"
            )
        return loss

    def _save(self) -> None:
        """Write a training state that `resume` can go on from."""
        fields: dict[str, Any] = {
            "model": self.job.model,
            "options": self.job.options,
            "recipe": self.recipe,
            "data": self.data.info,
            "step": self.step,
            "seen": self.seen,
            "seconds": self.seconds,
            "scaler": self.scaler.state_dict() if self.scaler.is_enabled() else {},
        }
        save_state(self.folder, fields, self.plain, self.optimizer, self.sums)

    def _test(self) -> Score:
        split = self.data.splits["test"]
        with progress() as bars:
            batches = evaluation_batches(split, self.preprocess, EVALUATION_BATCH, self.device)
            counted = bars.track(batches, total=-(-len(split) // EVALUATION_BATCH), description="test")
            return evaluate(self.module, self._laid_out(counted), self.device, self.recipe.precision)

    def _laid_out(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for images, labels in batches:
            yield images.contiguous(memory_format=self.layout), labels

    def _differences(self, old: TrainingState | Checkpoint) -> list[str]:
        """What differs between this run and an earlier one, as `name: earlier, now`."""
        pairs: dict[str, tuple[Any, Any]] = {"model": (old.model, self.job.model)}
        pairs |= {key: (old.options.get(key), value) for key, value in self.job.options.items()}
        for key in Recipe.__struct_fields__:
            if key != "save_every":  # how often a run is saved does not change it
                pairs[key] = (getattr(old.recipe, key), getattr(self.recipe, key))
        other_images = ["data: other images"] if old.data.splits != self.data.info.splits else []
        return other_images + [f"{key}: {was}, now {now}" for key, (was, now) in pairs.items() if was != now]


def say(line: str) -> None:
    """A line about the run, on stderr, where progress belongs."""
    print(line, file=sys.stderr, flush=True)


def peak_memory(device: torch.device) -> int:
    """Peak bytes: allocated on the GPU, or resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

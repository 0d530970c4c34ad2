"""The training loop: a model, its recipe and its data in; a checkpoint on disk out."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.batches import evaluation_batches, steps_per_epoch, training_batches
from trainers.checkpoint import NAME, Checkpoint, Metrics, keep_previous, write_weights
from trainers.cli import progress
from trainers.dataset import Dataset
from trainers.evaluate import Score, autocast, evaluate
from trainers.manifest import CheckFailed, Struct, UserError, environment
from trainers.optim import learning_rate, make_optimizer
from trainers.spec import ModelSpec, Option, Precision, Preprocess, Recipe
from trainers.state import TrainingState, clear_states, newest_state, restore, save_state

EVALUATION_BATCH = 128


class Job(Struct, frozen=True, kw_only=True):
    """What is to be trained."""

    model: str
    options: dict[str, Option]
    recipe: Recipe
    input_shape: tuple[int, int, int]


@dataclass
class Progress:
    """Where the loop stands. `totals` are the epoch's summed loss, hits and images, kept on the device."""

    totals: Tensor
    step: int = 0
    seconds: float = 0.0  # of training steps alone, over all resumed parts


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

    Raises CheckFailed when the loss stops being finite, UserError when `resume` finds a run with other settings.
    """
    recipe, split = job.recipe, data.splits["train"]
    torch.manual_seed(recipe.seed)
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    module = spec.build(num_classes=len(data.classes), input_shape=job.input_shape, **job.options)
    module = module.to(device).to(memory_format=layout)
    optimizer = make_optimizer(module, recipe)
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
    preprocess = preprocess_for(job, data)
    at = Progress(totals=torch.zeros(3, device=device, dtype=torch.float64))
    if resume:
        done = _resume(job, data, folder, module, optimizer, scaler, at)
        if done is not None:
            return done
    else:
        clear_states(folder)
    started_at = at.step
    per_epoch = steps_per_epoch(split, recipe)
    steps = recipe.steps or recipe.epochs * per_epoch
    compiled = cast(nn.Module, torch.compile(module)) if recipe.compile else module
    score, mean_loss = None, float("nan")

    def save() -> None:
        fields: dict[str, Any] = {
            "model": job.model,
            "options": job.options,
            "recipe": recipe,
            "data": data.info,
            "step": at.step,
            "seconds": at.seconds,
            "scaler": scaler.state_dict() if scaler.is_enabled() else {},
        }
        save_state(folder, fields, module, optimizer, at.totals)

    while at.step < steps:
        epoch, start = divmod(at.step, per_epoch)
        module.train()
        end = min(steps, (epoch + 1) * per_epoch)
        first, clock = at.step, at.seconds
        batches = training_batches(split, preprocess, recipe, epoch, start, device)
        for _ in _steps(batches, compiled, optimizer, scaler, recipe, device, steps, at, f"epoch {epoch + 1}", end):
            if recipe.save_every and at.step % recipe.save_every == 0 and at.step < steps:
                loss = _mean_loss(at)
                save()
                say(
                    f"step {at.step}/{steps}  loss {loss:.4f}  {1e3 * (at.seconds - clock) / (at.step - first):.1f} "
                    "ms/step  state saved"
                )
        mean_loss = _mean_loss(at)
        accuracy = 100 * (at.totals[1] / at.totals[2]).item()
        at.totals.zero_()
        if at.step < steps:
            save()
        score = _test(compiled, data, preprocess, recipe, device)
        say(
            f"epoch {epoch + 1}  step {at.step}/{steps}  loss {mean_loss:.4f}  train {accuracy:.2f}%  "
            f"{1e3 * (at.seconds - clock) / (at.step - first):.1f} ms/step  test loss {score.loss:.4f}  "
            f"test {score.top1:.2f}%"
        )
    assert score is not None, "a run has at least one step"
    images = (at.step - started_at) * min(recipe.batch_size, len(split))
    metrics = Metrics(
        split="test",
        images=score.images,
        loss=score.loss,
        top1=score.top1,
        top5=score.top5,
        train_loss=mean_loss,
        images_per_second=at.step * min(recipe.batch_size, len(split)) / at.seconds if images else 0.0,
        peak_memory_bytes=peak_memory(device),
    )
    return _finish(job, data, preprocess, module, metrics, folder, at, epochs=-(-at.step // per_epoch))


def preprocess_for(job: Job, data: Dataset) -> Preprocess:
    """Whole images, scaled to the model's size, normalised by the source's mean and deviation."""
    height, width = job.input_shape[1:]
    return Preprocess(size=(height, width), resize=min(height, width), mean=data.mean, std=data.std)


def say(line: str) -> None:
    """A line about the run, on stderr, where progress belongs."""
    print(line, file=sys.stderr, flush=True)


def peak_memory(device: torch.device) -> int:
    """Peak bytes: allocated on the GPU, or resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _steps(
    batches: Iterator[tuple[Tensor, Tensor]],
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    recipe: Recipe,
    device: torch.device,
    steps: int,
    at: Progress,
    title: str,
    end: int,
) -> Iterator[None]:
    """Run the epoch's steps up to `end`, yielding after each; nothing here waits for the device."""
    shown_at = time.monotonic()
    with progress() as bars:
        bar = bars.add_task(title, total=end, completed=at.step)
        while at.step < end:
            began = time.perf_counter()
            images, labels = next(batches)
            _step(module, optimizer, scaler, recipe, device, images, labels, steps, at)
            at.step += 1
            at.seconds += time.perf_counter() - began
            if time.monotonic() - shown_at > 2:  # now and then, since reading the loss waits for the device
                bars.update(bar, description=f"{title}  loss {_mean_loss(at):.3f}")
                shown_at = time.monotonic()
            bars.update(bar, completed=at.step)
            yield
        if device.type == "cuda":
            began = time.perf_counter()
            torch.cuda.synchronize()
            at.seconds += time.perf_counter() - began


def _step(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    recipe: Recipe,
    device: torch.device,
    images: Tensor,
    labels: Tensor,
    steps: int,
    at: Progress,
) -> None:
    if recipe.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(recipe, at.step, steps)
    with autocast(device, recipe.precision):
        logits = module(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    scaler.scale(loss).backward()
    if recipe.clip_norm:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(module.parameters(), recipe.clip_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    count = len(labels)
    hits = (logits.detach().argmax(1) == labels).sum()
    at.totals += torch.stack([loss.detach().double() * count, hits.double(), at.totals.new_tensor(count)])


def _mean_loss(at: Progress) -> float:
    """The epoch's mean loss so far. Raises CheckFailed when it is not finite: such weights are not worth keeping."""
    loss = (at.totals[0] / at.totals[2]).item()
    if not abs(loss) < float("inf"):
        raise CheckFailed(
            f"the loss is {loss} at or before step {at.step}; train again with a smaller rate, for "
            "example --set lr=1e-4, or with --precision fp32"
        )
    return loss


def _test(module: nn.Module, data: Dataset, preprocess: Preprocess, recipe: Recipe, device: torch.device) -> Score:
    split = data.splits["test"]
    with progress() as bars:
        batches = evaluation_batches(split, preprocess, EVALUATION_BATCH, device)
        counted = bars.track(batches, total=-(-len(split) // EVALUATION_BATCH), description="test")
        return evaluate(module, _laid_out(counted, recipe), device, recipe.precision)


def _laid_out(batches: Iterator[tuple[Tensor, Tensor]], recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    for images, labels in batches:
        yield images.contiguous(memory_format=layout), labels


def _resume(
    job: Job,
    data: Dataset,
    folder: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    at: Progress,
) -> Checkpoint | None:
    """Restore the newest whole state; a finished run's checkpoint is returned instead."""
    state, complaints = newest_state(folder)
    for complaint in complaints:
        say(f"note: {complaint}")
    if state is None:
        record = folder / f"{NAME}.json"
        finished = Checkpoint.load(record) if record.is_file() else None
        if finished is not None and not _differences(job, data, finished):
            say(f"already finished: {record}")
            return finished
        say("nothing to resume: training from the start")
        return None
    differences = _differences(job, data, state)
    if differences:
        raise UserError(
            f"--resume: the interrupted run had other settings ({'; '.join(differences)}); "
            "give the same ones, or train afresh without --resume"
        )
    at.totals.copy_(restore(state, folder, module, optimizer))
    if scaler.is_enabled():
        scaler.load_state_dict(state.scaler)
    at.step, at.seconds = state.step, state.seconds
    say(f"resumed at step {state.step}")
    return None


def _differences(job: Job, data: Dataset, old: TrainingState | Checkpoint) -> list[str]:
    """What differs between this run and an earlier one, as `name: earlier, now`."""
    pairs: dict[str, tuple[Any, Any]] = {"model": (old.model, job.model), "data": (old.data.splits, data.info.splits)}
    pairs |= {key: (old.options.get(key), value) for key, value in job.options.items()}
    for key in Recipe.__struct_fields__:
        if key != "save_every":  # how often a run is saved does not change it
            pairs[key] = (getattr(old.recipe, key), getattr(job.recipe, key))
    return [
        f"{key}: other images" if key == "data" else f"{key}: {before}, now {now}"
        for key, (before, now) in pairs.items()
        if before != now
    ]


def _finish(
    job: Job,
    data: Dataset,
    preprocess: Preprocess,
    module: nn.Module,
    metrics: Metrics,
    folder: Path,
    at: Progress,
    epochs: int,
) -> Checkpoint:
    """Write weights, then the record; then the interrupted-run states have served."""
    keep_previous(folder)
    weights = write_weights(module.state_dict(), folder / f"{NAME}.safetensors")
    checkpoint = Checkpoint(
        model=job.model,
        options=job.options,
        parameters=sum(p.numel() for p in module.parameters()),
        input_shape=job.input_shape,
        classes=data.classes,
        preprocess=preprocess,
        data=data.info,
        recipe=job.recipe,
        epochs=epochs,
        steps=at.step,
        seconds=at.seconds,
        metrics=metrics,
        files=(weights,),
        environment=environment(),
    )
    checkpoint.save(folder / f"{NAME}.json")
    clear_states(folder)
    return checkpoint

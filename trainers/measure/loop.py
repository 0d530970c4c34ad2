"""A small, plain training loop whose every optimisation is a switch: what the ladder measures."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import gc
import itertools
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers import kernels
from trainers.allocator import keep_freed_memory
from trainers.batches import evaluation_batches
from trainers.dataset import Dataset
from trainers.evaluate import autocast, evaluate
from trainers.initialise import initialise, some_images
from trainers.manifest import UserError
from trainers.measure.feed import feed
from trainers.measure.results import Learned, Point
from trainers.measure.rung import Switches
from trainers.optim import learning_rate, make_optimizer
from trainers.rewrites import rewrite, selected
from trainers.serving import peak_bytes
from trainers.spec import ModelSpec, Option, Preprocess, Recipe

AT_MOST = 5000  # steps a turn, all of which are kept
WARM_STEPS = 3  # compiling, the optimizer's state, and a CUDA graph's recording
SHORT = 0.1  # of a turn: a step this short is first taken once untimed, for caches were the other workers'
EVALUATION_BATCH = 128
FOREVER = 1 << 30  # steps of a schedule that never gets anywhere: while timing, weights hardly move


class Loop:
    """One model being trained as the switches say."""

    def __init__(
        self, spec: ModelSpec, options: Mapping[str, Option], recipe: Recipe, data: Dataset, switches: Switches,
        device: torch.device,
    ) -> None:  # fmt: skip
        """Raises UserError when a switch has nothing to work on here."""
        self.data, self.switches, self.device = data, switches, device
        self.split = data.splits["train"]
        if switches.batch_size > len(self.split):
            raise UserError(f"a batch of {switches.batch_size} needs more than the {len(self.split)} training images")
        self.recipe = _scaled(recipe, switches)
        if switches.keep_memory and not keep_freed_memory():
            raise UserError("malloc here cannot be told to keep freed memory")
        torch.set_num_threads(switches.cores)
        torch.manual_seed(recipe.seed)
        shape = spec.shape(options)
        self.layout = torch.channels_last if switches.channels_last else torch.contiguous_format
        plain = spec.build(num_classes=len(data.classes), input_shape=shape, **options)
        initialise(plain, recipe.init, lambda: some_images(data, shape))
        if switches.rewrites:
            newest = switches.rewrites[-1]
            if not rewrite(copy.deepcopy(plain), shape, [newest]):
                raise UserError(f"the model has nothing that {newest} could rewrite")
            rewrite(plain, shape, selected(",".join(switches.rewrites)))
        self.plain = plain.to(device).to(memory_format=self.layout)
        if switches.kernels:
            kernels.fuse(self.plain)
        self.module = _compiled(self.plain, switches)
        self.preprocess = Preprocess(size=shape[1:], resize=min(shape[1:]), mean=data.mean, std=data.std)
        self._initial = [tensor.detach().clone() for tensor in self._tensors()]
        self._short = False
        self._begin(FOREVER)

    def warm(self, seconds: float) -> float:
        """Train untimed for `seconds`, at least WARM_STEPS; returns the first step's seconds, compiling included."""
        began = time.perf_counter()
        self._step()
        self._sync()
        first = time.perf_counter() - began
        steps = 1
        while steps < WARM_STEPS or time.perf_counter() - began < seconds:
            self._step()
            steps += 1
        self._sync()
        return first

    def turn(self, seconds: float, *, rest: bool) -> list[float]:
        """Train for `seconds`; returns each step's seconds, waiting for its images included.

        With `rest` freed memory is handed back at the end, for others that take turns; the next turn gets it again.
        """
        if rest or self._short:
            self._step()
            self._sync()
        taken: list[float] = []
        with _no_collector():
            start = time.perf_counter()
            deadline = start + seconds
            while start < deadline and len(taken) < AT_MOST:
                self._step()
                end = time.perf_counter()
                taken.append(end - start)
                start = end
            self._sync()
            taken[-1] += time.perf_counter() - start
        self._short = sum(taken) / len(taken) < SHORT * seconds
        if rest:
            _hand_back(self.device)
        return taken

    def learn(self, images: int, test_images: int, points: int) -> Learned:
        """Train anew from the first weights on this many images, then test. Raises UserError on a loss gone wrong."""
        steps = max(1, images // self.recipe.batch_size)
        self._begin(steps)
        curve: list[Point] = []
        every = max(1, steps // points)
        began = time.perf_counter()
        for number in range(1, steps + 1):
            self._step()
            if number % every == 0 or number == steps:
                curve.append(self._point(number, time.perf_counter() - began, curve))
        indices = np.unique(np.linspace(0, len(self.data.splits["test"]) - 1, test_images).astype(np.int64))
        batches = evaluation_batches(self.data.splits["test"], self.preprocess, EVALUATION_BATCH, self.device, indices)
        laid_out = ((x.contiguous(memory_format=self.layout), y) for x, y in batches)
        score = evaluate(self.plain, laid_out, self.device, self.switches.precision)
        if not math.isfinite(score.loss):
            raise UserError(f"wrong: the test loss is {score.loss} after {steps * self.recipe.batch_size} images")
        self._begin(FOREVER)
        self._short = True  # the next turn starts its loader untimed
        return Learned(
            images=steps * self.recipe.batch_size, test_images=score.images, loss=score.loss, top1=score.top1,
            curve=tuple(curve),
        )  # fmt: skip

    def peak_bytes(self) -> int:
        """Peak memory so far: allocated on the GPU, or the process's resident."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else peak_bytes()

    def _begin(self, steps: int) -> None:
        """The first weights again, a fresh optimizer, and the data from the start."""
        with torch.no_grad():
            for tensor, initial in zip(self._tensors(), self._initial, strict=True):
                tensor.copy_(initial)
        torch.manual_seed(self.recipe.seed)
        self.module.train()
        self.optimizer = make_optimizer(self.plain, self.recipe, fused=self.switches.fused)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.switches.precision == "fp16")
        self.batches = feed(self.split, self.preprocess, self.recipe, self.switches, self.device)
        self.sums = torch.zeros(2, device=self.device, dtype=torch.float64)  # loss and hits since the last point
        self.step, self.steps, self.seen = 0, steps, 0

    def _step(self) -> None:
        switches = self.switches
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.step, self.steps)
        images, labels = next(self.batches)
        images = images.to(self.device, non_blocking=switches.non_blocking)
        labels = labels.to(self.device, non_blocking=switches.non_blocking)
        if switches.precision == "fp32":
            images = images.float()
        with autocast(self.device, switches.precision):
            logits = self.module(images.contiguous(memory_format=self.layout))
            loss = F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        self.scaler.scale(loss).backward()
        self._clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=switches.set_to_none)
        self._count(loss.detach(), logits.detach(), labels)
        self.step += 1

    def _clip(self) -> None:
        norm, value = self.recipe.clip_norm, self.recipe.clip_value
        if norm or value:
            self.scaler.unscale_(self.optimizer)
        if value:
            nn.utils.clip_grad_value_(self.plain.parameters(), value)
        if norm:
            nn.utils.clip_grad_norm_(self.plain.parameters(), norm)

    def _count(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        hits = (logits.argmax(1) == labels).sum()
        if self.switches.item_every_step:  # as scripts do: the device is waited for twice
            self.sums += torch.tensor([loss.item() * len(labels), hits.item()], dtype=torch.float64).to(self.device)
        else:
            self.sums += torch.stack([loss.double() * len(labels), hits.double()])
        self.seen += len(labels)

    def _point(self, step: int, seconds: float, curve: list[Point]) -> Point:
        loss, hits = self.sums.tolist()
        point = Point(
            step=step, seconds=seconds, loss=loss / self.seen, accuracy=100 * hits / self.seen,
            images_per_second=self.seen / (seconds - (curve[-1].seconds if curve else 0.0)),
            memory_bytes=_memory_in_use(self.device),
        )  # fmt: skip
        self.sums.zero_()
        self.seen = 0
        if not math.isfinite(point.loss):
            raise UserError(f"wrong: the loss is {point.loss} after {step * self.recipe.batch_size} images")
        return point

    def _tensors(self) -> Iterator[Tensor]:
        return itertools.chain(self.plain.parameters(), self.plain.buffers())

    def _sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _scaled(recipe: Recipe, switches: Switches) -> Recipe:
    """The recipe at another batch size: its rate grows in proportion for SGD, by the square root for AdamW.

    Goyal et al., "Accurate, Large Minibatch SGD" (2017); Malladi et al., "On the SDEs and Scaling Rules for Adaptive
    Gradient Algorithms" (2022).
    """
    factor = switches.batch_size / recipe.batch_size
    lr = recipe.lr * (factor if recipe.optimizer == "sgd" else math.sqrt(factor))
    return msgspec.structs.replace(recipe, batch_size=switches.batch_size, lr=lr)


def _compiled(module: nn.Module, switches: Switches) -> nn.Module:
    if not switches.compile:
        return module
    return cast(nn.Module, torch.compile(module, mode=switches.compile))


def _hand_back(device: torch.device) -> None:
    """Return memory that is free to the system or the GPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def _memory_in_use(device: torch.device) -> int:
    """Bytes now: allocated on the GPU, or resident (Linux; elsewhere the peak)."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak_bytes()
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    """A garbage collection inside a step would be timed as if the technique had taken it."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()

"""Learner: a model while it is trained at one image size, and what one batch does to it."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from trainers.diagnosis import Guard
from trainers.distributed import ALONE, World
from trainers.evaluate import autocast
from trainers.optim import make_optimizer
from trainers.parallel import gathered, replicated, scattered, shard, unsynchronised
from trainers.rewrites import rewrite, selected
from trainers.spec import Recipe

OPTIMIZER, MODEL, AVERAGE = "optimizer.", "model.", "average."


class Learner:
    """A module on its device with its optimizer, gradient scaler and, if the recipe says so, its averaged weights.

    `plain` is the module whose state dict is the checkpoint's (rewritten in place for speed, with the same names);
    `module` is what runs: `plain`, replicated over the world's processes where there are several, and compiled.
    """

    def __init__(
        self,
        plain: nn.Module,
        recipe: Recipe,
        device: torch.device,
        input_shape: tuple[int, int, int],
        world: World = ALONE,
    ) -> None:
        self.recipe, self.device, self.world = recipe, device, world
        self.layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        rewrite(plain, input_shape, selected(recipe.rewrites))
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        if world.size > 1 and device.type == "cuda":
            plain = nn.SyncBatchNorm.convert_sync_batchnorm(plain)
        if not recipe.shard:  # shards move to the device one by one, and must be contiguous
            plain = plain.to(device).to(memory_format=self.layout)
        self.plain = plain
        average = get_ema_multi_avg_fn(recipe.ema)
        # Shards and buffers, which are whole, cannot be averaged in one call: there the newest buffers are taken.
        buffers = not recipe.shard
        self.average = AveragedModel(plain, multi_avg_fn=average, use_buffers=buffers) if recipe.ema else None
        module = self._spread()
        self.module = cast(nn.Module, torch.compile(module)) if recipe.compile else module
        self.optimizer = make_optimizer(self.plain, recipe)
        self.guard = Guard(self.optimizer, device, freezes=not (self.scaler.is_enabled() or recipe.shard))

    def _spread(self) -> nn.Module:
        if self.recipe.shard:
            for module in (self.plain, *([self.average.module] if self.average else [])):
                shard(module, self.device)
        elif self.world.size > 1:
            return replicated(self.plain)
        return self.plain

    @property
    def result(self) -> nn.Module:
        """The module whose weights count: the averaged one, if there is one."""
        return self.average.module if self.average else self.plain

    @property
    def judged(self) -> nn.Module:
        """The module to evaluate: the result, compiled if the trained one is."""
        return self.average.module if self.average else self.module

    def step(self, images: Tensor, labels: Tensor, lr: float) -> Tensor:
        """One optimizer step on float32 images (N, C, H, W); returns float64 (2,): the summed loss and the hits.

        Nothing here waits for the device.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        sums = torch.zeros(2, device=self.device, dtype=torch.float64)
        parts = self.recipe.accumulate
        done = 0
        for part, truth in zip(images.chunk(parts), labels.chunk(parts), strict=True):
            done += len(truth)
            with unsynchronised(self.module, done < len(labels)):
                with autocast(self.device, self.recipe.precision):
                    logits = self.module(part.contiguous(memory_format=self.layout))
                    loss = F.cross_entropy(logits, truth, label_smoothing=self.recipe.label_smoothing)
                self.scaler.scale(loss * (len(truth) / len(labels))).backward()
            hits = (logits.detach().argmax(1) == truth).sum()
            sums += torch.stack([loss.detach().double() * len(truth), hits.double()])
        sums = self.world.sum(sums)
        self.guard.note(sums[0])
        self._clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update_parameters(self.plain)
        return sums

    def _clip(self) -> None:
        recipe = self.recipe
        if recipe.clip_norm or recipe.clip_value:
            self.scaler.unscale_(self.optimizer)
        if recipe.clip_value:
            nn.utils.clip_grad_value_(self.plain.parameters(), recipe.clip_value)
        if recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.plain.parameters(), recipe.clip_norm)

    def weights(self, everywhere: bool = False) -> dict[str, Tensor]:
        """The result's state dict. Put together from shards, it is empty but in the writer (or `everywhere`)."""
        weights = self.result.state_dict()
        return gathered(weights, everywhere or self.world.writer) if self.recipe.shard else weights

    def state(self) -> dict[str, Tensor]:
        """Everything that a later `restore` needs, by name; put together from shards, empty but in the writer."""
        tensors = {f"{MODEL}{name}": tensor for name, tensor in self.plain.state_dict().items()}
        if self.average:
            tensors |= {f"{AVERAGE}{name}": tensor for name, tensor in self.average.state_dict().items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            # SGD before its first step has a momentum of None, which is the same as having none.
            tensors |= {f"{OPTIMIZER}{index}.{key}": value for key, value in values.items() if value is not None}
        return gathered(tensors, self.world.writer) if self.recipe.shard else tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from an earlier `state` of the same model and recipe."""
        self._load(self.plain, _under(MODEL, tensors))
        if self.average:
            self._load(self.average, _under(AVERAGE, tensors))
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        held: dict[int, dict[str, Tensor]] = {}
        for name, value in _under(OPTIMIZER, tensors).items():
            index, key = name.split(".", 1)
            held.setdefault(int(index), {})[key] = self._laid(value, parameters[int(index)])
        self.optimizer.load_state_dict({"state": held, "param_groups": self.optimizer.state_dict()["param_groups"]})

    def _load(self, module: nn.Module, tensors: dict[str, Tensor]) -> None:
        held = module.state_dict()
        module.load_state_dict({name: self._placed(tensor, held[name]) for name, tensor in tensors.items()})

    def _placed(self, tensor: Tensor, like: Tensor) -> Tensor:
        return scattered(tensor, like) if self.recipe.shard else tensor

    def _laid(self, moment: Tensor, like: Tensor) -> Tensor:
        """A fused optimizer walks through memory: a moment must lie as its parameter does, here channels last."""
        if self.recipe.shard or moment.shape != like.shape:
            return self._placed(moment, like)
        return torch.empty_like(like, dtype=moment.dtype).copy_(moment)


def resized(state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """A state dict fitted to the same model at another image size: maps (C, H, W) are interpolated bilinearly."""
    fitted = {}
    for name, wanted in module.state_dict().items():
        value = state[name].detach().cpu()
        if value.shape != wanted.shape:
            size = (int(wanted.shape[-2]), int(wanted.shape[-1]))
            value = F.interpolate(value[None], size, mode="bilinear", align_corners=False)[0]
        fitted[name] = value
    return fitted


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}

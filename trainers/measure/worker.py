"""One rung, one process: a training loop that is asked for turns.

    {"do": "open", "model": …, "options": {…}, "recipe": {…}, "data": …, "device": …, "switches": {…}, …}
    {"do": "warm", "seconds": 0.5}                                 -> the first step's seconds
    {"do": "turn", "seconds": 0.3, "rest": false}                  -> every step's seconds, peak memory
    {"do": "learn", "images": 4096, "test_images": 500, "points": 40}   -> loss and top-1 from the first weights on

Run by `trainers.process`, never by hand.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from trainers.serving import serve

OUT_OF_MEMORY = ("can't allocate memory", "Cannot allocate memory", "bad_alloc", "out of memory")


class Worker:
    """The state between requests: the loop."""

    def open(
        self, *, model: str, options: dict[str, Any], recipe: dict[str, Any], data: str, seed: int, cache: str | None,
        pack_limit: int | None, device: str, switches: dict[str, Any], gpu_memory: int | None,
    ) -> dict[str, Any]:  # fmt: skip
        """Open the data (packed before, by the parent) and build the model."""
        import msgspec
        import torch

        from trainers import external, models
        from trainers.measure.loop import Loop
        from trainers.measure.rung import Switches
        from trainers.open import open_dataset
        from trainers.spec import Recipe

        spec = models.get(external.allow(model))  # the parent's command line named it
        images = open_dataset(
            data, shape=spec.shape(options), num_classes=spec.num_classes, seed=seed,
            cache=Path(cache) if cache else None, pack_limit=pack_limit, download=False,
        )  # fmt: skip
        if gpu_memory is not None:
            share = gpu_memory / torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, share))
        self._loop = Loop(
            spec, options, msgspec.convert(recipe, Recipe), images, msgspec.convert(switches, Switches),
            torch.device(device),
        )  # fmt: skip
        return {}

    def warm(self, *, seconds: float) -> dict[str, Any]:
        return {"first_step_s": self._loop.warm(seconds), "peak_bytes": self._loop.peak_bytes()}

    def turn(self, *, seconds: float, rest: bool) -> dict[str, Any]:
        taken = self._loop.turn(seconds, rest=rest)
        return {"steps_s": [round(step, 7) for step in taken], "peak_bytes": self._loop.peak_bytes()}

    def learn(self, *, images: int, test_images: int, points: int) -> dict[str, Any]:
        import msgspec

        return {"learned": msgspec.to_builtins(self._loop.learn(images, test_images, points))}


def explain(error: Exception) -> str:
    """An exception as one short line; what ran out of memory says so first."""
    text = textwrap.shorten(" ".join(str(error).split()), 160)
    if isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY):
        return f"out of memory: {text}" if text else "out of memory"
    return f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    serve(Worker(), explain)

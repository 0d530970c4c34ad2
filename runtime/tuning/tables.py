"""A search in words: what was tried, the Pareto set, and one recommendation. Pure functions of what was found."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path

from runtime.report.summary import PROVISIONAL, too_noisy
from runtime.report.table import milliseconds
from runtime.results import engine_name
from runtime.tuning.best import EAGER, Best, pareto
from runtime.tuning.candidate import Candidate
from trainers.cli import megabytes
from trainers.stats import Estimate

COLUMNS = ("", "form", "engine", ">ms", ">times faster", ">val drop", ">size", "came to")
LEGEND = "*: nothing beats it in time, accuracy and size at once"
SPARE = ("came to", ">size", ">times faster")  # in this order, on a narrow terminal
REASON = 60  # characters of why a candidate is out; the trace has all


def rows(model: str, candidates: Sequence[Candidate], winner: str | None) -> list[tuple[str, ...]]:
    """One a candidate, the fastest first; the winner is marked, and what nothing beats in time, accuracy and size.

    Times faster are than the fp32 file in ONNX Runtime.
    """
    front = {one.name for one in pareto(candidates)}
    return [
        (
            "use" if one.name == winner else "*" if one.name in front else "",
            one.artifact.removeprefix(f"{model}-"),
            one.engine,
            "-" if one.seconds is None else milliseconds(one.seconds),
            "-" if one.faster is None else f"{one.faster.value:.2f}",
            "-" if one.accuracy is None else f"{one.accuracy.drop:.2f}",
            megabytes(one.bytes),
            textwrap.shorten(one.out or one.stage, REASON, placeholder=" …"),
        )
        for one in sorted(candidates, key=lambda one: (one.seconds is None, one.cost, one.seconds or 0.0))
    ]


def recommendation(best: Best) -> str:
    """One sentence with its numbers and their intervals."""
    accuracy, question = best.accuracy, best.question
    engine = engine_name(best.backend, best.options)
    faster = _faster(best)
    unit = f"at batch {question.batch}{', many in flight' if question.metric == 'throughput' else ''}"
    what = "top-1 drop" if accuracy.labelled else "images answered otherwise than by PyTorch:"
    low, high = accuracy.drop_interval
    images = f"{accuracy.images:,} {accuracy.split} images"
    kept = f"{what} {accuracy.drop:+.2f} points [{low:+.2f}, {high:+.2f}] on {images}"
    if high > question.max_drop:
        kept += f", too few to show that it is within {question.max_drop:g}"
    ms = Estimate(*(1e3 * value for value in (best.latency_s.value, best.latency_s.low, best.latency_s.high)))
    tie = f"; not measurably slower: {', '.join(best.ties)}" if best.ties else ""
    busy = PROVISIONAL if best.disturbed else ""
    return (f"{question.model}: use {best.artifact} in {engine}: {_interval(ms, '.3g')} ms {unit}{faster}; {kept}; "
            f"{megabytes(best.bytes)}{tie}{busy}.")  # fmt: skip


def _faster(best: Best) -> str:
    if best.faster is None:
        return ""
    if best.faster.is_vague:
        return too_noisy(best.faster, best.baseline)
    return f", {_interval(best.faster, '.2f')} times as fast as {best.baseline}"


def how(best: Best, folder: Path, artifacts: Path, factory: str | None) -> list[str]:
    """The command that measures it again beside its baseline, and three lines of Python that use it.

    `factory` is the user's own model, `FILE.py:FACTORY`, as it was typed.
    """
    asked, here = best.question, best.environment
    device = asked.device if here.gpu and asked.device == "cpu" else None  # else it is what each takes by itself
    path = folder / best.file.path
    from_module = factory if path.suffix == ".safetensors" else None  # only PyTorch's engines run the user's code
    plain = next(folder.glob("*-torch-exact-fp32.safetensors"), None) if best.baseline == EAGER else None
    files = [path, *([plain] if plain else [])]
    engines = ",".join([best.backend, *(["eager"] if plain else [])])
    own = f" --model {shlex.quote(factory)}" if factory and plain else ""
    options = "".join(f" --option {key}={value}" for key, value in sorted(best.options.items()))
    options += f" --device {device}" if device else ""
    options += f" --regime {asked.regime}" if asked.regime != "device" else ""
    common = {"batch": asked.batch if asked.batch != 1 else None, "device": device, "factory": from_module}
    if asked.metric == "latency":
        name, given = "best", _arguments(
            folder.name, max_drop=asked.max_drop if asked.max_drop != 0.5 else None, **common,
            artifacts=str(artifacts) if artifacts != Path("artifacts") else None,
        )  # fmt: skip
    else:  # best() is for one inference at a time
        threads = asked.threads if asked.threads != here.threads else None
        name, given = "load", _arguments(str(path), backend=best.backend, threads=threads, **common, **best.options)
    return [
        f"again: python -m runtime bench {shlex.join(map(str, files))} --backends {engines}{options}{own}"
        f" --batch {asked.batch} --threads {asked.threads}",
        "in Python:",
        f"  from runtime import {name}",
        f"  model = {name}({given})",
        "  logits = model(images)",
    ]


def _arguments(first: str, **named: object) -> str:
    """What stands between a call's brackets; None is left out."""
    return ", ".join([repr(first), *(f"{name}={value!r}" for name, value in named.items() if value is not None)])


def _interval(value: Estimate, form: str) -> str:
    return f"{value.value:{form}} [{value.low:{form}}, {value.high:{form}}]"

"""Comparison: two reports row by row, and all that speaks against reading one against the other."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import msgspec

from runtime import backends
from runtime.change import Change, Limits, Side, added, judge, percent, removed
from runtime.identity import identity
from runtime.results import Report
from trainers.manifest import Struct, UserError

SOME = 3  # rows, from which on a common shift is worth a word


class Comparison(Struct, frozen=True, kw_only=True):
    """The changes, those of the new report in its order. `warnings` say why they may not be what they seem."""

    limits: Limits
    warnings: tuple[str, ...]
    changes: tuple[Change, ...]

    @property
    def regressions(self) -> int:
        return sum(change.word == "REGRESSION" for change in self.changes)

    def models(self) -> list[str]:
        return list(dict.fromkeys(change.model for change in self.changes))


def compare(old: Report, new: Report, limits: Limits, *, across_machines: bool = False) -> Comparison:
    """Match the rows by model and cell, and judge each pair.

    Raises UserError when the reports are of two machines and that was not asked for, or have no row in common.
    """
    apart = list(_changed(identity(old.environment), identity(new.environment)))
    if apart and not across_machines:
        raise UserError(f"the reports come from two machines ({'; '.join(apart)}), whose times tell nothing about the "
                        "code; add --across-machines to compare them all the same")  # fmt: skip
    before, after = _sides(old), _sides(new)
    settings = list(_changed(_settings(old), _settings(new)))
    if not before.keys() & after.keys():
        hint = f" ({', '.join(settings)})" if settings else ""
        raise UserError(f"the reports have no row in common{hint}; compare runs of the same command")
    changes = [judge(before[key], side, limits) if key in before else added(side) for key, side in after.items()]
    changes += [removed(side, new) for key, side in before.items() if key not in after]
    warnings = [*(f"differs: {line}" for line in (*apart, *settings)), *_disturbed(old, new), *_shift(changes, limits)]
    return Comparison(limits=limits, warnings=tuple(warnings), changes=tuple(changes))


def _sides(report: Report) -> dict[bytes, Side]:
    """The rows by what makes them one: the model and the whole cell; the first of several."""
    sides: dict[bytes, Side] = {}
    for model in report.models():
        for row in report.of(model):
            sides.setdefault(msgspec.json.encode((model, row.cell), order="sorted"), Side(report, row))
    return sides


def _settings(report: Report) -> dict[str, str]:
    """What else a time depends on: threads, device, Python, the system, and the versions of the engines measured."""
    environment = report.environment
    used = {row.cell.backend for row in report.measurements} & set(backends.names())
    packages = sorted({package for name in used for package in backends.get(name).packages})
    versions = {package: environment.packages[package] for package in packages if package in environment.packages}
    threads = sorted({row.cell.threads for row in report.measurements})
    return {"threads": ", ".join(map(str, threads)), "device": report.device, "python": environment.python,
            "platform": environment.platform, **versions}  # fmt: skip


def _changed(old: dict[str, str], new: dict[str, str]) -> Iterator[str]:
    for key in dict.fromkeys((*old, *new)):
        if old.get(key) != new.get(key):
            yield f"{key} {old.get(key, 'none')} -> {new.get(key, 'none')}"


def _disturbed(old: Report, new: Report) -> Iterator[str]:
    for name, report in (("old", old), ("new", new)):
        if report.disturbances:
            yield f"DISTURBED: in the {name} run {'; '.join(report.disturbances)}"


def _shift(changes: list[Change], limits: Limits) -> Iterator[str]:
    """Where the middle row itself has moved beyond the limit, all rows have something in common: mostly the machine."""
    ratios = [change.ratio.value for change in changes if change.ratio is not None]
    middle = statistics.median(ratios) if len(ratios) >= SOME else 1.0
    if middle > 1 + limits.over:
        yield f"half of all rows take {percent(middle - 1)} longer or worse: look at the machine before the code"
    elif middle < 1 / (1 + limits.over):
        yield f"half of all rows take {percent(1 - middle)} less time or better: look at the machine before the code"

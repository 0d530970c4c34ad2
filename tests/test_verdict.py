"""Verdicts, on reports whose truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from runtime import quick, verdict
from runtime.results import Measurement, Report, Subject
from runtime.verdict import judge

GOLDEN = Path(__file__).parent / "golden"
FP32, INT8 = "simplecnn-dynamo-exact-fp32", "simplecnn-dynamo-exact-int8"


@pytest.fixture
def report() -> Report:
    return Report.load(GOLDEN / "report-2.json")


def row(report: Report, artifact: str, backend: str = "onnxruntime") -> Measurement:
    return next(row for row in report.of("simplecnn") if (row.cell.artifact, row.cell.backend) == (artifact, backend))


def timed(report: Report, artifact: str, times: float, noise: float = 0.002) -> Report:
    """The report with a row made `times` as slow as the baseline, and the baseline's twin as slow as itself."""
    random = np.random.default_rng(0)
    base = report.baseline(row(report, artifact))
    assert base is not None

    def scaled(by: float) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(float(s * by * random.normal(1, noise)) for s in turn) for turn in base.rounds_s)

    changed = [
        replace(m, rounds_s=scaled(1.0)) if m.cell.twin else
        replace(m, rounds_s=scaled(times)) if m.cell.artifact == artifact and m.cell.backend == "onnxruntime" else m
        for m in report.measurements
    ]  # fmt: skip
    return replace(report, measurements=tuple(changed))


def with_subject(report: Report, artifact: str, **changes: object) -> Report:
    subjects = tuple(replace(s, **changes) if s.name == artifact else s for s in report.subjects)
    return replace(report, subjects=subjects)


@pytest.mark.parametrize(
    ("times", "word"), [(0.5, "KEEP"), (0.97, "KEEP"), (0.995, "SAME"), (1.0, "SAME"), (1.005, "SAME"), (1.05, "DROP")]
)
def test_speed_is_judged_by_the_interval_and_the_floor(report: Report, times: float, word: str) -> None:
    found = timed(report, INT8, times)
    said = judge(found, row(found, INT8))
    assert said is not None
    assert said.word == word, said.why


def test_a_wide_interval_is_inconclusive(report: Report) -> None:
    found = timed(report, INT8, 1.0)
    noisy = tuple(tuple(s * factor for s in turn) for turn, factor in
                  zip(row(found, INT8).rounds_s, (0.5, 2.0) * 5, strict=True))  # fmt: skip
    changed = tuple(replace(m, rounds_s=noisy) if m is row(found, INT8) else m for m in found.measurements)
    found = replace(found, measurements=changed)
    said = judge(found, row(found, INT8))
    assert said is not None
    assert said.word == "INCONCLUSIVE"
    assert "--seconds" in said.why


def test_the_floor_is_what_the_twins_differ_by(report: Report) -> None:
    assert timed(report, INT8, 1.0).floor(row(report, INT8)) == pytest.approx(0.01, abs=0.002)
    apart = timed(report, INT8, 0.97)
    twins = tuple(replace(m, rounds_s=tuple(tuple(1.04 * s for s in turn) for turn in m.rounds_s)) if m.cell.twin else m
                  for m in apart.measurements)  # fmt: skip
    apart = replace(apart, measurements=twins)
    assert apart.floor(row(apart, INT8)) == pytest.approx(0.04, abs=0.005)
    said = judge(apart, row(apart, INT8))
    assert said is not None
    assert said.word == "SAME", "3% is less than equal rows differ by"


def test_accuracy_comes_before_speed(report: Report) -> None:
    fast = timed(report, INT8, 0.5)
    assert judge(with_subject(fast, INT8, drop=3.0), row(fast, INT8)).word == "DROP"  # type: ignore[union-attr]
    unknown = judge(with_subject(fast, INT8, drop=None), row(fast, INT8))
    assert unknown is not None
    assert unknown.word == "INCONCLUSIVE"
    assert "2.0" in unknown.why


def test_a_row_that_ran_otherwise_is_dropped_whatever_its_speed(report: Report) -> None:
    fast = timed(report, INT8, 0.5)
    changed = tuple(replace(m, shortfall="2 of 2 Conv ran in fp32") if m is row(fast, INT8) else m
                    for m in fast.measurements)  # fmt: skip
    fast = replace(fast, measurements=changed)
    said = judge(fast, row(fast, INT8))
    assert said is not None
    assert said.word == "DROP"
    assert "2 of 2 Conv" in said.why
    same = row(fast, INT8).cell.conditions
    assert INT8 not in [found.cell.artifact for found in fast.fastest("simplecnn", same, 100)
                        if found.cell.backend == "onnxruntime"]  # fmt: skip


def test_int8_that_is_slower_than_float_is_said_plainly(report: Report) -> None:
    fp32 = row(report, FP32).median.value
    base = report.baseline(row(report, INT8))
    assert base is not None
    slow = timed(report, INT8, 2 * fp32 / base.median.value)
    (said,) = verdict.slower_than_float(slow, "simplecnn")
    assert INT8 in said
    assert "2.0" in said
    assert not verdict.slower_than_float(timed(report, INT8, 0.1 * fp32 / base.median.value), "simplecnn")


def test_quick_takes_the_baselines_and_the_smallest_that_are_right(report: Report) -> None:
    int8 = next(subject for subject in report.subjects if subject.name == INT8)
    others = [replace(int8, name=f"simplecnn-{n}", bytes=1000 + n, passed=n != 3) for n in range(12)]
    targets = [Only(subject) for subject in (*others, *report.subjects)]
    kept, left_out = quick.choose(targets, report.plan)  # type: ignore[arg-type]
    names = [target.subject.name for target in kept]
    assert {FP32, "simplecnn-torch-exact-fp32"} <= set(names)
    assert names[:8] == [f"simplecnn-{n}" for n in (0, 1, 2, 4, 5, 6, 7, 8)]
    assert set(left_out) == {"simplecnn-3", "simplecnn-9", "simplecnn-10", "simplecnn-11", INT8, "aoti"}


class Only:
    """As much of a target as the choice needs."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

"""Two reports against each other: real runs of the small model, and copies whose answer is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import runtime_artifacts
from commands import expect_refusal, run

from runtime import stats, targets
from runtime.bench import Bench
from runtime.change import ROUNDS, Limits
from runtime.compare import Comparison, compare
from runtime.machine import State
from runtime.plan import Plan
from runtime.report import comparison
from runtime.results import Measurement, Report, Subject
from trainers.manifest import UserError, environment

pytestmark = pytest.mark.slow
LIMITS = Limits()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Report]:
    """The same matrix, measured twice."""
    made = runtime_artifacts.make(tmp_path_factory.getbasetemp())
    found, _ = targets.resolve(["simplecnn"], made.parent, None)
    plan = Plan(backends=("eager", "onnxruntime"), batches=(1, 4), rounds=6, processes=1, seconds=0.1, twin=False)
    first, second = (Bench(found, plan, environment()).run() for _ in range(2))
    return first, second


@pytest.fixture(scope="module")
def steady(runs: tuple[Report, Report]) -> Report:
    """A real report on a quiet machine: every row's samples drawn around its own median with little noise."""
    return msgspec.structs.replace(noisy(runs[0], seed=0), states=())


def noisy(report: Report, *, seed: int, scale: float = 1.0, noise: float = 0.005) -> Report:
    """Ten rounds of twenty samples for each row, `scale` times as long as they were."""
    random = np.random.default_rng(seed)

    def drawn(row: Measurement) -> Measurement:
        rounds = scale * row.median.value * np.exp(random.normal(0, noise, (10, 1)) + random.normal(0, noise, (10, 20)))
        return msgspec.structs.replace(row, rounds_s=tuple(map(tuple, rounds.tolist())), processes=())

    return msgspec.structs.replace(report, measurements=tuple(map(drawn, report.measurements)))


def one_row(report: Report, change: Callable[[Measurement], Measurement], index: int = 0) -> Report:
    rows = list(report.measurements)
    rows[index] = change(rows[index])
    return msgspec.structs.replace(report, measurements=tuple(rows))


def subjects(report: Report, change: Callable[[Subject], Subject]) -> Report:
    return msgspec.structs.replace(report, subjects=tuple(map(change, report.subjects)))


def scaled(row: Measurement, factor: float) -> Measurement:
    rounds = tuple(tuple(factor * sample for sample in turn) for turn in row.rounds_s)
    return msgspec.structs.replace(row, rounds_s=rounds)


def scaled_all(report: Report, factor: float) -> Report:
    return msgspec.structs.replace(report, measurements=tuple(scaled(row, factor) for row in report.measurements))


def words(found: Comparison) -> list[str]:
    return [change.word for change in found.changes]


def test_two_real_runs_are_matched_row_by_row(runs: tuple[Report, Report]) -> None:
    found = compare(*runs, LIMITS)
    assert [change.cell for change in found.changes] == [row.cell for row in runs[1].measurements]
    assert not {"ADDED", "REMOVED"} & set(words(found))
    for change, old, new in zip(found.changes, *(report.measurements for report in runs), strict=True):
        assert change.ratio
        assert change.ratio.value == pytest.approx(new.median.value / old.median.value)
        assert change.ratio.low <= change.ratio.value <= change.ratio.high
        assert (change.drop or 0.0, change.size) == (0.0, 1.0)


def test_real_samples_made_slower_give_that_very_ratio(runs: tuple[Report, Report]) -> None:
    for factor in (1.05, 0.9):
        slower = one_row(runs[0], lambda row, by=factor: scaled(row, by))  # type: ignore[misc]
        ratio = compare(runs[0], slower, LIMITS).changes[0].ratio
        assert ratio
        assert ratio.value == pytest.approx(factor)
        assert ratio.low < factor < ratio.high


def test_a_report_against_itself_has_not_changed(steady: Report) -> None:
    found = compare(steady, steady, LIMITS)
    assert set(words(found)) == {"SAME"}
    assert (found.regressions, found.warnings) == (0, ())


def test_each_word_for_time(steady: Report) -> None:
    for factor, word in ((1.05, "REGRESSION"), (0.9, "IMPROVEMENT"), (1.01, "SAME")):
        again = noisy(one_row(steady, lambda row, by=factor: scaled(row, by)), seed=1)  # type: ignore[misc]
        found = compare(steady, again, LIMITS)
        assert found.changes[0].word == word
        assert set(words(found)[1:]) == {"SAME"}
    generous = compare(steady, noisy(steady, seed=1, scale=1.05), Limits(over=0.1))
    assert set(words(generous)) == {"SAME"}


def test_what_noise_hides_is_inconclusive(steady: Report) -> None:
    old, new = (noisy(steady, seed=seed, noise=0.2) for seed in (1, 2))
    found = compare(old, new, LIMITS)
    assert found.regressions == 0
    assert "INCONCLUSIVE" in words(found)
    vague = noisy(steady, seed=3, noise=1.0)
    assert compare(steady, vague, LIMITS).changes[0].why == ("too noisy to tell",)
    few = one_row(
        scaled_all(steady, 2.0),
        lambda row: msgspec.structs.replace(row, rounds_s=row.rounds_s[: ROUNDS - 1], processes=()),
    )
    assert words(compare(steady, few, LIMITS))[:2] == ["INCONCLUSIVE", "REGRESSION"]
    assert "4 rounds are too few" in compare(steady, few, LIMITS).changes[0].why[0]


@pytest.mark.parametrize("rounds", [ROUNDS, 10])
def test_equals_are_seldom_called_different(rounds: int) -> None:
    """200 pairs of runs of one thing: rounds that differ by 5%, samples by 10% within each."""
    random, apart, alarms = np.random.default_rng(3), 0, 0
    for _ in range(200):
        old, new = (
            np.exp(random.normal(0, 0.05, (rounds, 1)) + random.normal(0, 0.1, (rounds, 20))).tolist() for _ in range(2)
        )
        ratio = stats.change(old, new)
        apart += not ratio.low <= 1 <= ratio.high
        alarms += ratio.low > 1 and ratio.value > 1 + LIMITS.over
    assert apart <= 18  # 5% are 10, and 18 are as many as chance then gives once in a hundred times
    assert alarms <= 10


def test_a_planted_slowdown_is_found() -> None:
    random, found = np.random.default_rng(4), 0
    for _ in range(40):
        old, new = (
            (factor * np.exp(random.normal(0, 0.01, (10, 1)) + random.normal(0, 0.05, (10, 20)))).tolist()
            for factor in (1.0, 1.05)
        )
        ratio = stats.change(old, new)
        found += ratio.low > 1 and ratio.value > 1 + LIMITS.over
    assert found >= 38


def test_accuracy_and_size_have_limits_of_their_own(steady: Report) -> None:
    known = subjects(steady, lambda s: msgspec.structs.replace(s, drop=0.1, drop_interval=(-0.2, 0.4)))

    def after(**changes: object) -> Comparison:
        return compare(known, subjects(known, lambda s: msgspec.structs.replace(s, **changes)), LIMITS)

    worse = after(drop=0.7, drop_interval=(0.3, 1.1))
    assert set(words(worse)) == {"REGRESSION"}
    assert worse.changes[0].drop == pytest.approx(0.6)
    assert worse.changes[0].drop_interval == pytest.approx((0.1, 1.1))  # 0.6 -+ the root of 0.3² + 0.4²
    assert worse.changes[0].why == ("loses 0.60 points more (95% interval 0.10 to 1.10)",)
    assert set(words(after(drop=0.55))) == {"SAME"}
    assert set(words(after(drop=-0.6))) == {"IMPROVEMENT"}
    unknown = after(drop=None, drop_interval=None)
    assert set(words(unknown)) == {"SAME"}
    assert unknown.changes[0].drop is None
    assert set(words(after(bytes=2 * known.subjects[0].bytes))) == {"REGRESSION"}
    assert set(words(after(bytes=1000))) == {"IMPROVEMENT"}
    assert set(words(after(passed=False))) == {"REGRESSION"}


def test_a_row_that_fails_now_is_a_regression_and_rows_come_and_go(steady: Report) -> None:
    def fails(row: Measurement) -> Measurement:
        return msgspec.structs.replace(row, error="crashed: SIGSEGV", rounds_s=())

    broken = one_row(steady, fails)
    assert compare(steady, broken, LIMITS).changes[0].why == ("fails now: crashed: SIGSEGV",)
    assert compare(steady, broken, LIMITS).regressions == 1
    assert compare(broken, steady, LIMITS).changes[0].word == "IMPROVEMENT"
    assert compare(broken, broken, LIMITS).changes[0].word == "SAME"
    name = steady.measurements[-1].cell.backend
    fewer = msgspec.structs.replace(steady, measurements=steady.measurements[:-1], unavailable={name: "not installed"})
    assert words(compare(fewer, steady, LIMITS))[-1] == "ADDED"
    gone = compare(steady, fewer, LIMITS)
    assert (gone.changes[-1].word, gone.changes[-1].why) == ("REMOVED", (f"{name}: not installed",))
    assert gone.regressions == 0


def test_what_else_differs_is_said(steady: Report) -> None:
    def moved(**changes: object) -> Report:
        return msgspec.structs.replace(steady, environment=msgspec.structs.replace(steady.environment, **changes))

    with pytest.raises(UserError, match=r"two machines .*host .* -> another.*--across-machines"):
        compare(steady, moved(host="another"), LIMITS)
    allowed = compare(steady, moved(host="another"), LIMITS, across_machines=True)
    assert allowed.warnings == (f"differs: host {steady.environment.host} -> another",)
    newer = moved(packages={**steady.environment.packages, "torch": "99", "netron": "1"})
    assert compare(steady, newer, LIMITS).warnings == (
        f"differs: torch {steady.environment.packages['torch']} -> 99",
    )  # fmt: skip
    busy = msgspec.structs.replace(steady, states=(State(other_load=1.5),))
    assert compare(steady, busy, LIMITS).warnings == ("DISTURBED: in the new run others used 1.5 cores",)
    (shift,) = compare(steady, noisy(steady, seed=1, scale=1.2), LIMITS).warnings
    assert "half of all rows take" in shift
    cells = (msgspec.structs.replace(row.cell, threads=64) for row in steady.measurements)
    rows = (msgspec.structs.replace(row, cell=cell) for row, cell in zip(steady.measurements, cells, strict=True))
    with pytest.raises(UserError, match=r"no row in common .*threads 1 -> 64"):
        compare(steady, msgspec.structs.replace(steady, measurements=tuple(rows)), LIMITS)


def test_driver_and_gpu_are_told_apart(steady: Report) -> None:
    def on(gpu: str) -> Report:
        return msgspec.structs.replace(steady, environment=msgspec.structs.replace(steady.environment, gpu=gpu))

    assert compare(on("H100, 80 GB, 570.1; H100, 80 GB, 570.1"), on("H100, 80 GB, 571.2; H100, 80 GB, 571.2"), LIMITS)
    with pytest.raises(UserError, match="two machines"):
        compare(on("H100, 80 GB, 570.1"), on("H200, 141 GB, 570.1"), LIMITS)


def test_markdown_is_one_table_a_model_with_as_many_cells_in_each_row(steady: Report) -> None:
    text = comparison.markdown(compare(steady, noisy(steady, seed=1, scale=1.05), LIMITS))
    assert "### simplecnn" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(steady.measurements)
    assert {line.count("|") for line in lines} == {len(comparison.COLUMNS) + 1}


def test_the_command_fails_on_a_regression_and_only_then(steady: Report, tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "artifacts" / "reports" / "1.json"
    steady.save(old)
    noisy(one_row(steady, lambda row: scaled(row, 1.2)), seed=1).save(new)
    same = run("runtime", "compare", old, old)
    assert same.returncode == 0, same.stderr
    assert f"{len(steady.measurements)} SAME" in same.stdout
    for folder in (new, new.parent, new.parent.parent):
        worse = run("runtime", "compare", old, folder)
        assert worse.returncode == 1, worse.stderr
        assert "1 REGRESSION" in worse.stdout
    assert run("runtime", "compare", old, new, "--fail-over", "50%").returncode == 0
    printed = run("runtime", "compare", old, new, "--json")
    document = json.loads(printed.stdout)
    assert printed.returncode == 1
    assert document["changes"][0]["word"] == "REGRESSION"
    assert run("runtime", "compare", old, new, "--markdown").stdout.startswith("**")


def test_mistakes_are_one_line(steady: Report, tmp_path: Path) -> None:
    old, other = tmp_path / "old.json", tmp_path / "other.json"
    steady.save(old)
    elsewhere = msgspec.structs.replace(steady.environment, host="another")
    msgspec.structs.replace(steady, environment=elsewhere).save(other)
    for arguments, says in (
        ((old, other), "--across-machines"),
        ((old, tmp_path / "nowhere.json"), "no such report"),
        ((old, tmp_path / "empty"), "no report in"),
        ((old, old, "--fail-over", "3"), "write for example 3%"),
        ((old, old, "--fail-drop", "-1"), "at least 0"),
        ((old, old, "--json", "--markdown"), "give one"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        expect_refusal("runtime", "compare", *arguments, says=says)
    assert run("runtime", "compare", old, other, "--across-machines").returncode == 0

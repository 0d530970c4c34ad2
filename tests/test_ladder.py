"""Ladder, sweep and experiments: real commands on the smallest model, and the arithmetic on known samples."""

from __future__ import annotations

import csv
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from commands import expect_refusal, run, succeed
from PIL import Image

from trainers import models
from trainers.checkpoint import Checkpoint
from trainers.dataset import DataInfo, SplitInfo
from trainers.manifest import UserError, environment, gpu
from trainers.measure import tables
from trainers.measure.feed import feed
from trainers.measure.loop import Loop
from trainers.measure.results import Experiments, Ladder, Result, Sweep, Turns, sweet_spot
from trainers.measure.rung import RUNGS, Switches, climbed, selected, unusable
from trainers.measure.switches import tuned_recipe
from trainers.open import open_dataset
from trainers.spec import Preprocess, Recipe

NO_GPU = pytest.mark.skipif(gpu() is not None, reason="this machine has an NVIDIA GPU")
SHORT = ("--device", "cpu", "--rounds", 2, "--seconds", 0.2)
INFO = DataInfo(
    name="synthetic", path=None, seed=0, classes_used=10, splits={"train": SplitInfo(count=6000, sha256="0" * 64)}
)


def turns(name: str, *paces: float, batch: int = 32) -> Turns:
    """Two equal steps a round at these images per second."""
    return Turns(name=name, batch_size=batch, rounds_s=tuple((batch / pace, batch / pace) for pace in paces))


def row(name: str, *paces: float, beside: tuple[Turns, ...] = (), before: str | None = None, batch: int = 32) -> Result:
    return Result(
        name=name, title=name, device="cpu", switches=Switches(batch_size=batch), beside=beside, before=before,
        turns=turns(name, *paces, batch=batch), peak_bytes=10**9,
    )  # fmt: skip


def climb_of_four() -> Ladder:
    """The second rung is twice as fast, the third slower than that, the fourth equal but for noise; one has failed."""
    first, second = (100.0, 200.0, 50.0), (200.0, 400.0, 100.0)
    results = (
        row("a", *first),
        row("b", *second, beside=(turns("a", *first),), before="a"),
        row("c", 120, 300, 70, beside=(turns("a", *first), turns("b", *second)), before="b"),
        Result(name="x", title="x", device="cpu", switches=Switches(), error="needs an NVIDIA GPU"),
        row("d", 202, 396, 101, beside=(turns("a", *first), turns("b", *second)), before="b"),
    )
    return Ladder(
        environment=environment(), command="test", model="simplecnn", options={"width": 32}, data=INFO, device="cpu",
        rounds=3, seconds=1.0, results=results,
    )  # fmt: skip


def test_ratios_are_taken_round_by_round_and_a_slower_rung_is_not_built_upon(tmp_path: Path) -> None:
    ladder = climb_of_four()
    a, b, c, x, d = ladder.results
    assert [result.kept for result in ladder.results] == [True, True, False, False, True]
    assert ladder.ratio(b).value == pytest.approx(2)
    assert ladder.ratio(b).low == pytest.approx(2), "the machine's mood is in both"
    assert c.ratio_before.high < 1
    assert ladder.ratio(c).value == pytest.approx(1.4)
    assert ladder.ratio(x) is None
    assert ladder.best is d
    assert ladder.best_ratio.value == pytest.approx(2.02)
    assert ladder.unhelpful() == [c, d]
    assert a.step_s == pytest.approx(0.32)
    notes = [tables.ladder_note(ladder, result) for result in ladder.results]
    assert notes == ["", "", "slower: left out of the next rungs", "needs an NVIDIA GPU", "best"]
    ladder.save(tmp_path / "ladder.json")
    assert Ladder.load(tmp_path / "ladder.json") == ladder


def test_a_rung_that_learns_wrongly_is_not_built_upon() -> None:
    wrong = msgspec.structs.replace(
        row("b", 500, beside=(turns("a", 100),), before="a"), error="wrong: the loss is nan"
    )
    assert not wrong.kept


def test_the_sweet_spot_is_the_smallest_batch_that_is_nearly_the_fastest() -> None:
    rows = [row("16", 500, batch=16), row("64", 980, batch=64), row("128", 1000, batch=128)]
    failed = Result(name="256", title="256", device="cpu", switches=Switches(batch_size=256), error="out of memory")
    assert sweet_spot([*rows, failed]) is rows[1]
    assert sweet_spot([failed]) is None


def test_an_epoch_is_the_training_split_at_the_measured_pace() -> None:
    record = Experiments(
        environment=environment(), command="test", model="simplecnn", options={}, data=INFO, rounds=1, seconds=1.0,
        groups={"cpu": (row("a", 600),)},
    )  # fmt: skip
    assert record.epoch_s(record.groups["cpu"][0]) == pytest.approx(10)


def test_the_table_adds_one_technique_a_rung() -> None:
    switches = Switches()
    for name in RUNGS:
        more = climbed(switches, name, 128)
        assert more != switches or name == "one-thread"
        switches = more
    assert switches.batch_size == 128
    assert switches.rewrites == ("live-taps", "small-maps", "map-norm")
    assert (switches.loader, switches.compile) == ("packed", "reduce-overhead")
    assert selected("fused,one-thread") == ["one-thread", "fused"]
    assert unusable(RUNGS, "cuda").keys() == {"keep-memory"}
    assert {"pinned-memory", "fp16", "cuda-graphs", "kernels"} <= unusable(RUNGS, "cpu").keys()


def test_every_loader_gives_the_same_images_in_the_same_order() -> None:
    """In a process of its own: PyTorch's loaders fork, which some engines' libraries, once loaded, do not survive."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(compare_loaders).result() == 3  # batches


def compare_loaders() -> int:
    """How many batches were compared; an assertion that fails there fails here."""
    data = open_dataset("synthetic", shape=(1, 28, 28), num_classes=10)
    recipe, whole = Recipe(batch_size=16), Preprocess(size=(28, 28), resize=28, mean=data.mean, std=data.std)
    first = {}
    for loader in ("images", "workers", "packed"):
        batches = feed(data.splits["train"], whole, recipe, Switches(loader=loader), torch.device("cpu"))
        first[loader] = [next(batches) for _ in range(3)]
        batches.close()
    for (images, labels), *others in zip(first["packed"], first["images"], first["workers"], strict=True):
        assert images.shape == (16, 1, 28, 28)
        for other_images, other_labels in others:
            assert torch.equal(labels, other_labels)
            torch.testing.assert_close(images.contiguous(), other_images)
    half = next(feed(data.splits["train"], whole, recipe, Switches(half_input=True), torch.device("cpu")))
    assert half[0].dtype == torch.bfloat16
    return len(first["packed"])


def test_learning_starts_from_the_same_weights_whatever_was_trained_before() -> None:
    spec, data = models.get("simplecnn"), open_dataset("synthetic", shape=(1, 28, 28), num_classes=10)
    plain = Loop(spec, spec.options, Recipe(batch_size=16), data, Switches(batch_size=16), torch.device("cpu"))
    plain.warm(0.01)
    once = plain.learn(64, 100, points=2)
    assert plain.turn(0.01, rest=True)
    again = plain.learn(64, 100, points=2)
    assert (once.images, once.test_images) == (64, 100)
    assert (once.loss, once.top1) == (again.loss, again.top1)
    other = Switches(batch_size=16, item_every_step=False, set_to_none=True, fused=True, loader="packed", threads=0)
    tuned = Loop(spec, spec.options, Recipe(batch_size=16), data, other, torch.device("cpu")).learn(64, 100, points=2)
    assert tuned.loss == pytest.approx(once.loss, rel=1e-4)
    assert [point.step for point in tuned.curve] == [2, 4]


def test_a_switch_with_nothing_to_work_on_is_refused() -> None:
    spec, data = models.get("simplecnn"), open_dataset("synthetic", shape=(1, 28, 28), num_classes=10)
    for switches, says in (
        (Switches(rewrites=("live-taps",)), "nothing that live-taps"),
        (Switches(batch_size=10**6), "6000 training images"),
    ):
        with pytest.raises(UserError, match=says):
            Loop(spec, spec.options, Recipe(), data, switches, torch.device("cpu"))


@pytest.fixture(scope="module")
def climbed_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, str]:
    """A ladder's folder, its JSON document and what it printed."""
    folder = tmp_path_factory.mktemp("ladder")
    done = succeed(
        "trainers.ladder", "simplecnn", *SHORT, "--images", 256, "--json", "--logs", folder / "logs",
        "--rungs", "one-thread,loader-workers,pinned-memory,large-batch,live-taps", "--artifacts", folder,
    )  # fmt: skip
    return folder, json.loads(done.stdout), done.stderr


def test_a_ladder_measures_each_rung_beside_the_first_and_the_best(climbed_once: tuple[Path, dict, str]) -> None:
    _, document, shown = climbed_once
    ladder = msgspec.convert({k: v for k, v in document.items() if k in Ladder.__struct_fields__}, Ladder)
    by_name = {result.name: result for result in ladder.results}
    assert document["ratios"]["one-thread"]["first"]["value"] == 1
    assert document["best_ratio"]["value"] == ladder.best_ratio.value
    assert by_name["live-taps"].error == "the model has nothing that it could rewrite"
    for name in ("one-thread", "loader-workers", "large-batch"):
        result = by_name[name]
        assert result.error is None
        assert len(result.turns.rounds_s) == 2
        assert result.learned.images == 256
        assert result.learned.curve[-1].step == 256 // result.switches.batch_size
        assert result.peak_bytes > 1 << 26
    assert {turns.name for turns in by_name["loader-workers"].beside} == {"one-thread"}
    assert by_name["large-batch"].before in {turns.name for turns in by_name["large-batch"].beside}
    assert "best:" in shown
    assert "x first" in shown


@NO_GPU
def test_a_rung_that_needs_a_gpu_is_a_row_that_says_so(climbed_once: tuple[Path, dict, str]) -> None:
    _, document, shown = climbed_once
    assert document["ratios"]["pinned-memory"]["error"] == "needs an NVIDIA GPU"
    assert "needs an NVIDIA GPU" in shown


def test_a_ladder_leaves_record_csv_picture_and_runs(climbed_once: tuple[Path, dict, str]) -> None:
    folder, document, _ = climbed_once
    (record,) = (folder / "simplecnn" / "ladder").glob("*.json")
    assert json.loads(json.dumps(Ladder.load(record).to_document()["results"])) == document["results"]
    lines = list(csv.DictReader(record.with_suffix(".csv").read_text().splitlines()))
    assert [line["name"] for line in lines] == list(document["ratios"])
    assert float(lines[0]["ratio"]) == 1
    with Image.open(record.with_suffix(".png")) as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.shape[0] > 200
    assert 0.5 < (pixels > 240).mean() < 0.99, "a light picture with something on it"
    for name in ("original", "optimized"):
        scalars = events(folder / "logs" / "simplecnn" / name)
        assert {"train/loss", "train/accuracy", "speed/images_per_second", "memory/megabytes"} <= scalars.keys()
        steps, times = zip(*scalars["train/loss"], strict=True)
        assert list(steps) == sorted(steps)
        assert 0 < times[-1] - times[0] < 60, "the time axis is the training's own"


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The steps and wall times of every scalar of a TensorBoard run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(event.step, event.wall_time) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_a_rung_that_runs_out_of_memory_is_a_row_and_the_climb_goes_on(tmp_path: Path) -> None:
    done = succeed(
        "trainers.ladder", "simplecnn", *SHORT, "--images", 64, "--rungs", "one-thread,large-batch,grads-none",
        "--batch-sizes", "32,4096", "--memory-limit", "1200M", "--json", "--logs", tmp_path / "logs", "--artifacts",
        tmp_path,
    )  # fmt: skip
    rows = {row["name"]: row for row in json.loads(done.stdout)["results"]}
    assert "out of memory" in rows["large-batch"]["error"]
    assert rows["grads-none"]["switches"]["batch_size"] == 32
    assert rows["grads-none"]["before"] == "one-thread"


def test_a_sweep_names_the_sweet_spot_and_keeps_what_does_not_fit_as_a_row(tmp_path: Path) -> None:
    done = succeed(
        "trainers.sweep", "simplecnn", *SHORT, "--batch-sizes", "16,4096", "--memory-limit", "1200M", "--json",
        "--artifacts", tmp_path,
    )  # fmt: skip
    document = json.loads(done.stdout)
    assert document["sweet_spot"] == 16
    assert "out of memory" in document["results"][1]["error"]
    (record,) = (tmp_path / "simplecnn" / "sweep").glob("*.json")
    assert Sweep.load(record).sweet_spot.switches.loader == "packed"
    assert record.with_suffix(".csv").read_text().count("\n") == 3
    with Image.open(record.with_suffix(".png")) as picture:
        assert picture.width > 600


@NO_GPU
@pytest.mark.slow
def test_the_experiments_are_one_row_each(tmp_path: Path) -> None:
    done = succeed("trainers.experiments", "simplecnn", "--rounds", 2, "--seconds", 0.2, "--images", 128, "--artifacts",
                   tmp_path, timeout=600)  # fmt: skip
    (record,) = (tmp_path / "simplecnn" / "experiments").glob("*.json")
    rows = {result.title: result for group in Experiments.load(record).groups.values() for result in group}
    for title in ("CPU, 1 thread", "CPU, all threads, loader workers", "vanilla", "compile", "AMP", "compile + AMP"):
        assert rows[title].error is None
        assert rows[title].learned.images == 128
        assert title in done.stdout
    assert rows["GPU, AMP, best batch"].error == "needs an NVIDIA GPU"
    assert rows["compile"].switches.compile == "default"
    assert "compiled" in done.stdout


def test_recipe_auto_takes_the_newest_ladder_of_this_machine(tmp_path: Path) -> None:
    flags = ("trainers", "simplecnn", "--device", "cpu", "--steps", 2, "--recipe", "auto", "--artifacts", tmp_path)
    assert "the defaults (no ladder was measured" in succeed(*flags).stderr
    ladder = climb_of_four()
    best = msgspec.structs.replace(
        ladder.results[-1], switches=Switches(precision="bf16", channels_last=True, keep_memory=True)
    )
    ladder = msgspec.structs.replace(ladder, results=(*ladder.results[:-1], best))
    ladder.save(tmp_path / "simplecnn" / "ladder" / "2026.json")
    elsewhere = msgspec.structs.replace(ladder, environment=msgspec.structs.replace(ladder.environment, host="another"))
    elsewhere.save(tmp_path / "simplecnn" / "ladder" / "2027.json")
    assert "precision=bf16, channels_last=True, compile=False, keep_memory=True" in succeed(*flags).stderr
    recipe = Checkpoint.load(tmp_path / "simplecnn" / "checkpoint.json").recipe
    assert (recipe.precision, recipe.channels_last, recipe.rewrites) == ("bf16", True, "none")
    assert recipe.batch_size == models.get("simplecnn").recipe("synthetic").batch_size


def test_what_a_ladder_says_about_computing_is_all_that_a_recipe_takes() -> None:
    recipe = Recipe(lr=0.3, batch_size=7)
    fitted = tuned_recipe(recipe, Switches(compile="reduce-overhead", rewrites=("live-taps", "map-norm")))
    assert (fitted.lr, fitted.batch_size) == (0.3, 7)
    assert (fitted.compile, fitted.rewrites) == (True, "live-taps,map-norm")


@pytest.mark.parametrize(
    ("command", "flags", "says"),
    [
        ("ladder", ("--rungs", "one-thred"), "did you mean one-thread?"),
        ("ladder", ("--set", "precision=bf16"), "leave it out"),
        ("ladder", ("--batch-sizes", "32"), "a small and a larger one"),
        ("sweep", ("--batch-sizes", "0,16"), "positive number"),
        ("experiments", ("--seconds", "0"), "not a time in seconds"),
    ],
)
def test_mistakes_get_one_line(tmp_path: Path, command: str, flags: tuple[str, ...], says: str) -> None:
    expect_refusal(f"trainers.{command}", "simplecnn", *flags, "--artifacts", tmp_path / "out", says=says)
    assert not (tmp_path / "out").exists()


def test_nothing_measured_is_a_failure(tmp_path: Path) -> None:
    done = run("trainers.sweep", "simplecnn", *SHORT, "--batch-sizes", 10_000, "--artifacts", tmp_path)
    assert done.returncode == 1
    assert "needs more than the 6000 training images" in done.stdout

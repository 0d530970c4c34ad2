"""What a session's outputs must look like to be ranked."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
import runtime_artifacts

from export.artifact import Artifact, find
from runtime.check import Reference, answers, finite, judge

Records = dict[str, Artifact]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Reference, Records]]:
    folder = runtime_artifacts.make(tmp_path_factory.getbasetemp())
    records = {found.name: found.record for found in find(folder) if found.record}
    yield Reference.load(folder / "reference.safetensors"), records


def record(made: tuple[Reference, Records], precision: str, **parity: object) -> Artifact:
    found = made[1][f"simplecnn-dynamo-exact-{precision}"]
    return msgspec.structs.replace(found, parity=msgspec.structs.replace(found.parity, **parity))


def test_the_reference_itself_passes(made: tuple[Reference, Records]) -> None:
    for precision in ("fp32", "int8"):
        check = judge(made[0].logits, made[0], record(made, precision))
        assert not check.reason
        assert check.cosine == pytest.approx(1.0)
        assert check.top1_agreement == 100.0


def test_fp32_must_be_fp32(made: tuple[Reference, Records]) -> None:
    """A hundredth of the logits' deviation is what bf16 arithmetic would do: harmless, but not what was asked."""
    logits = made[0].logits
    noise = np.random.default_rng(0).normal(0, 0.01 * logits.std(), logits.shape).astype(np.float32)
    assert "max error" in judge(logits + noise, made[0], record(made, "fp32")).reason
    assert not judge(logits + noise, made[0], record(made, "int8")).reason


def test_an_approximate_file_may_not_be_further_off_than_its_record_says(made: tuple[Reference, Records]) -> None:
    logits = made[0].logits
    noise = np.random.default_rng(0).normal(0, 0.5 * logits.std(), logits.shape).astype(np.float32)
    assert "cosine" in judge(logits + noise, made[0], record(made, "int8")).reason
    assert not judge(logits + noise, made[0], record(made, "int8", cosine=0.9, top1_agreement=70.0)).reason


def test_shuffled_and_broken_outputs_are_wrong(made: tuple[Reference, Records]) -> None:
    logits = made[0].logits.copy()
    assert judge(logits[::-1], made[0], record(made, "int8")).reason
    assert "shape" in judge(logits[:, :-1], made[0], record(made, "fp32")).reason
    logits[3, 1] = np.nan
    assert "finite" in judge(logits, made[0], record(made, "fp32")).reason
    assert "finite" in finite(logits).reason


def test_answers_fill_up_the_last_batch(made: tuple[Reference, Records]) -> None:
    class Mean:
        build_s = 0.0

        def __init__(self) -> None:
            self.attested: dict[str, str] = {}
            self.sizes: list[int] = []

        def bind(self, x: np.ndarray) -> None:
            self.sizes.append(len(x))
            self.x = x

        def step(self) -> None: ...

        def sync(self) -> None: ...

        def fetch(self) -> np.ndarray:
            return self.x.mean((1, 2, 3))[:, None]

        def close(self) -> None: ...

    session, images = Mean(), made[0].images
    logits = answers(session, images, 24)
    assert session.sizes == [24, 24, 24]
    np.testing.assert_allclose(logits[:, 0], images.mean((1, 2, 3)), rtol=1e-5)


def test_a_reference_gives_batches_larger_than_itself(made: tuple[Reference, Records]) -> None:
    assert made[0].batch(100).shape[0] == 100

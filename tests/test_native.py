"""The project's own int8 kernels compute what ONNX Runtime computes, on shapes that fill no vector as well."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import PIL.Image
import pytest
from checkpoints import random_checkpoint
from commands import succeed

from export.artifact import Found, find, open_file
from runtime import backends, best
from runtime.attest.native import attest
from runtime.backend import BackendError
from runtime.backends import native
from runtime.native import layout, library
from runtime.native.library import Op
from runtime.native.lower import lower
from runtime.native.program import Program

pytestmark = pytest.mark.slow
needs_kernels = pytest.mark.skipif(bool(library.unusable()), reason=str(library.unusable()))
QUANTIZED = ("--quantize", "int8", "--exporter", "dynamo", "--verify-images", 8, "--calibration-images", 8)
MODELS: dict[str, dict[str, object]] = {
    "simplecnn": {},
    "resnet18": {"stem": "cifar"},
    "convnext": {"size": 64, "blocks": "1,1,2,1"},
}
ODD = '''
import torch
from torch import nn

class Odd(nn.Module):
    """Channels that fill no vector, windows of every kind, an activation of several nodes, a sum of two branches."""

    def __init__(self, num_classes=11, input_shape=(3, 19, 23)):
        super().__init__()
        self.first = nn.Conv2d(input_shape[0], 21, 3, stride=2, padding=1)
        self.second = nn.Conv2d(21, 37, (3, 5), padding=(2, 4), dilation=2)
        self.third = nn.Conv2d(37, 37, 1)
        self.short = nn.Conv2d(21, 37, 1, bias=False)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.last = nn.Conv2d(37, 70, 3, padding=(0, 1))
        self.classes = nn.Linear(70, num_classes)

    def forward(self, images):
        first = torch.relu(self.first(images))
        second = self.second(first)
        third = self.third(second * torch.sigmoid(1.702 * second))
        joined = torch.relu(third + self.short(first))
        return self.classes(torch.nn.functional.hardswish(self.last(self.pool(joined))).mean((2, 3)))

class Normed(nn.Module):
    """Norms, and depthwise convolutions in float: of three sizes, with strides, of channels that fill no vector.

    One reads what a long product of few channels leaves: a float map in blocks.
    """

    def __init__(self, num_classes=9, input_shape=(3, 19, 23)):
        super().__init__()
        self.stem = nn.Conv2d(input_shape[0], 24, 3)
        self.wide = nn.Conv2d(24, 24, 5, stride=2, padding=2, groups=24)
        self.norm = nn.LayerNorm([24, 9, 11])
        self.expand, self.project = nn.Conv2d(24, 1024, 1), nn.Conv2d(1024, 24, 1)
        self.narrow = nn.Conv2d(24, 24, 3, stride=(2, 2), padding=1, groups=24, bias=False)
        self.second = nn.LayerNorm([24, 5, 6])
        self.head = nn.Conv2d(24, 50, 3)
        self.classes = nn.Linear(50, num_classes)

    def forward(self, images):
        x = self.norm(self.wide(self.stem(images)))
        y = self.project(torch.nn.functional.gelu(self.expand(x)))
        return self.classes(self.head(self.second(self.narrow(y))).mean((2, 3)))
'''


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("native")
    for model, changes in MODELS.items():
        random_checkpoint(folder, model, **changes)
        succeed("export", model, *QUANTIZED, "--target", "cpu", "--artifacts", folder)
    (folder / "odd.py").write_text(ODD)
    for name in ("Odd", "Normed"):
        succeed("export", f"{folder}/odd.py:{name}", *QUANTIZED, "--target", "cpu", "--input", "3x19x23", "--name",
                name.lower(), "--artifacts", folder)  # fmt: skip
    return folder


def int8(made: Path, model: str) -> Found:
    return open_file(next((made / model).glob("*-int8.onnx")))


def images(found: Found, count: int) -> np.ndarray:
    assert found.record is not None
    shape = [size or 1 for size in found.record.inputs[0].shape[1:]]
    return np.random.default_rng(count).normal(size=(count, *shape)).astype(np.float32)


def logits(found: Found, x: np.ndarray, threads: int) -> np.ndarray:
    session = native.load(found, device="cpu", threads=threads, batch=len(x), options={})
    session.bind(x)
    session.step()
    session.sync()
    answer = session.fetch()
    session.close()
    return answer


def test_the_same_fields_in_both_languages() -> None:
    text = (Path(library.__file__).parent / "op.h").read_text()
    declared = text[text.index("struct Op {") : text.rindex("};")]
    named = re.findall(r"[\s*](\w+)(?=[,;])", re.sub(r"//.*", "", declared))
    renamed = {"in": "source", "out": "target"}
    assert [renamed.get(name, name) for name in named] == [name for name, *_ in Op._fields_]


@needs_kernels
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("model", [*MODELS, "odd", "normed"])
def test_it_computes_what_onnxruntime_computes(made: Path, model: str, batch: int, threads: int) -> None:
    """Where all is integers, most logits to the last bit; a scaled sum may be rounded to the other side."""
    found = int8(made, model)
    x = images(found, batch)
    (expected,) = onnxruntime.InferenceSession(found.path).run(None, {"images": x})
    got = logits(found, x, threads)
    assert np.ptp(expected) > 0
    if model in ("convnext", "normed"):
        cosine = (got * expected).sum() / np.sqrt((got**2).sum() * (expected**2).sum())
        assert cosine > 0.999
    else:
        steps = np.abs(got - expected).max() / np.ptp(expected)
        assert steps < 0.02
        assert np.mean(got == expected) >= 0.75


@needs_kernels
def test_bf16_is_close_and_said(made: Path) -> None:
    if not library.has_bf16():
        pytest.skip(f"the processor has no {library.BF16}")
    found = int8(made, "convnext")
    x = images(found, 3)
    session = native.load(found, device="cpu", threads=2, batch=3, options={"precision": "bf16"})
    session.bind(x)
    session.step()
    got, plain = session.fetch(), logits(found, x, 2)
    assert not np.array_equal(got, plain)
    assert (got * plain).sum() / np.sqrt((got**2).sum() * (plain**2).sum()) > 0.999
    assert attest(session, found).operators["Conv"].keys() == {"int8", "bf16"}
    session.close()


@needs_kernels
def test_a_program_can_run_again_and_beside_another(made: Path) -> None:
    found = int8(made, "convnext")
    kernels, lowered = library.load(), lower(found.path)
    one, two = (Program(layout.image(lowered, 1, 2), kernels) for _ in range(2))
    x, y = images(found, 2)[:1], images(found, 2)[1:]
    one.bind(x)
    two.bind(y)
    one.run()
    two.run()
    first = one.logits.copy()
    assert not np.array_equal(first, two.logits)
    for _ in range(20):
        one.run()
        assert np.array_equal(one.logits, first)
    one.close()
    two.close()


@needs_kernels
def test_it_is_for_int8_files_of_the_cpu_alone(made: Path) -> None:
    found = [one for one in find(made / "resnet18") if one.kind == "onnx"]
    assert [one.name for one in found if backends.serves(backends.get("native"), one)] == ["resnet18-dynamo-exact-int8"]
    plain = next(one for one in found if one.name.endswith("fp32"))
    with pytest.raises(BackendError, match=r"is not quantized|no kernel for"):
        lower(plain.path)


def test_what_reads_the_image_without_quantizing_it_is_refused(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]>
              g (float[N,3,8,8] images) => (float[N,3,1,1] y) { y = GlobalAveragePool(images) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "mean.onnx")
    with pytest.raises(BackendError, match="only the first step, which quantizes, may read the image"):
        lower(tmp_path / "mean.onnx")


@needs_kernels
def test_a_profile_has_every_step_and_attests_int8(made: Path, tmp_path: Path) -> None:
    done = succeed("runtime", "bench", made / "resnet18" / "resnet18-dynamo-exact-int8.onnx", "--backends", "native",
                   "--rounds", 2, "--processes", 1, "--seconds", 0.2, "--strict", "--artifacts", made)  # fmt: skip
    assert "native" in done.stdout
    done = succeed("runtime", "profile", "resnet18-dynamo-exact-int8", "--backend", "native", "--artifacts", made)
    assert "Convolution" in done.stdout


@needs_kernels
def test_a_bundle_brings_the_engine(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "simplecnn", tmp_path / "artifacts" / "simplecnn")
    bundle = tmp_path / "bundle"
    succeed("runtime", "tune", "simplecnn", "--engines", "native", "--budget", "20s", "--max-drop", 50, "--images", 50,
            "--artifacts", tmp_path / "artifacts", "--bundle", bundle)  # fmt: skip
    needs = (bundle / "requirements.txt").read_text()
    assert [line.partition("==")[0] for line in needs.splitlines()] == ["numpy", "pillow"]
    pixels = np.random.default_rng(1).integers(0, 256, (28, 28), np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "picture.png")
    absent = ("torch", "onnx", "onnxruntime", "openvino", "trainers", "export", "runtime")
    block = f"import runpy, sys; sys.modules.update(dict.fromkeys({absent}))"
    code = f"{block}; runpy.run_path({str(bundle / 'run.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "picture.png", "--top", "10"],
                          capture_output=True, text=True, check=False, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    with best("simplecnn", max_drop=50, artifacts=tmp_path / "artifacts") as model:
        assert model.backend == "native"
        for name, share in model.predict(tmp_path / "picture.png", top=3):
            assert f"{name} {share:.1%}" in done.stdout


@needs_kernels
def test_the_compiler_s_absence_is_a_reason(tmp_path: Path) -> None:
    code = "from runtime import backends; print(backends.get('native').unusable('cpu'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={"PATH": str(tmp_path), "CXX": "absent"})  # fmt: skip
    assert done.stdout.strip() == "no C++ compiler found; install g++, or name one by CXX"

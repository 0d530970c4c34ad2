"""load and best, from a program: real files in real engines, called rightly, wrongly, and by many threads at once."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import runtime_artifacts
import torch
from commands import succeed
from onnx import TensorProto, helper
from PIL import Image

import runtime
from export.artifact import find
from runtime import BackendError, Model, UserError, backends, best, load, sessions, targets
from runtime.bench import Bench
from runtime.check import Reference, judge
from runtime.plan import Plan
from runtime.results import Report
from trainers.manifest import environment
from trainers.preprocess import prepare

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
ENGINES = [name for name in backends.names() if backends.get(name).computes and not backends.get(name).unusable("cpu")]
FP32, INT8 = "simplecnn-dynamo-exact-fp32.onnx", "simplecnn-dynamo-exact-int8.onnx"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runtime_artifacts.make(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def reference(made: Path) -> Reference:
    return Reference.load(made / "reference.safetensors")


@pytest.fixture(scope="module")
def model(made: Path) -> Iterator[Model]:
    with load(made / FP32, device="cpu", threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def report(made: Path) -> Report:
    found, _ = targets.resolve(["simplecnn"], made.parent, None)
    plan = Plan(backends=("eager", "onnxruntime"), rounds=3, processes=1, seconds=0.1, options=({"graph": "basic"},))
    return Bench(found, plan, environment()).run()


@pytest.fixture
def benched(made: Path, report: Report, tmp_path: Path) -> Path:
    """An artifacts folder of the test's own, with its report."""
    shutil.copytree(made, tmp_path / "artifacts" / "simplecnn")
    report.save(tmp_path / "artifacts" / "reports" / "1.json")
    return tmp_path / "artifacts"


def said(found: pytest.ExceptionInfo[Exception]) -> str:
    """The message, which must be one line."""
    text = str(found.value)
    assert "\n" not in text
    return text


def test_importing_loads_nothing_and_the_names_no_framework() -> None:
    code = (
        "import json, sys; import runtime; light = 'numpy' not in sys.modules;"
        "from runtime import load, best, Model, BackendError, UserError;"
        "heavy = ('torch', 'onnx', 'onnxruntime', 'openvino', 'PIL');"
        "print(json.dumps([light, [name for name in heavy if name in sys.modules]]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [True, []]
    assert {"load", "best"} <= set(runtime.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        runtime.nothing  # noqa: B018


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_answers_like_pytorch_at_any_batch_size(made: Path, reference: Reference, name: str) -> None:
    for found in find(made):
        if not backends.serves(backends.get(name), found):
            continue
        assert found.record
        with load(found.path, backend=name, device="cpu", threads=1) as model:
            # AOTInductor compiles for each size.
            cut = [1, len(reference.images)] if name == "aoti" else [1, 4, 20, len(reference.images)]
            parts = [model(reference.images[a:b]) for a, b in zip([0, *cut], cut, strict=False)]
            assert [len(part) for part in parts] == [b - a for a, b in zip([0, *cut], cut, strict=False)]
            assert {part.dtype for part in parts} == {np.dtype(np.float32)}
            assert judge(np.concatenate(parts), reference, found.record).reason == ""
            assert model.attested
            assert (model.backend, model.record, model.classes) == (name, found.record, found.record.classes)


def test_the_kind_of_file_chooses_the_engine(made: Path) -> None:
    for file, engine in ((FP32, "onnxruntime"), ("simplecnn-torch-exact-fp32.safetensors", "eager")):
        with load(str(made / file), threads=1) as model:
            assert model.backend == engine
            assert engine in repr(model)


def test_an_engines_options_are_taken(made: Path) -> None:
    with load(made / FP32, device="cpu", graph="disabled") as model:
        assert model.attested["graph"] == "disabled"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x.astype(np.float64), r"float64; give float32 \[n, \d+, \d+, \d+\]"),
        (lambda x: (255 * x).astype(np.uint8), "uint8; give float32"),
        (lambda x: x[0], r"shape \[\d+, \d+, \d+\]; give"),
        (lambda x: x[:, :, 1:], "shape"),
        (lambda x: np.repeat(x, 2, axis=1), "shape"),
        (lambda x: x[:0], r"shape \[0, "),
        (lambda x: x.tolist(), "a list; give a numpy array"),
        (lambda x: torch.from_numpy(x).double(), "float64; give float32"),
        (lambda x: torch.from_numpy(x).bfloat16(), "bfloat16; give float32"),
        (lambda x: torch.from_numpy(x).to("meta"), "a tensor on meta; give"),
    ],
)
def test_images_that_do_not_fit_are_refused_in_one_line(
    model: Model, reference: Reference, spoil: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    with pytest.raises(UserError, match=message) as found:
        model(spoil(reference.images[:2]))
    said(found)


@pytest.mark.parametrize("file", [FP32, "simplecnn-torch-exact-fp32.safetensors"])
def test_images_may_lie_in_memory_as_they_like(made: Path, reference: Reference, file: str) -> None:
    images = reference.images[:4]
    frozen = images.copy()
    frozen.flags.writeable = False
    strided = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    with load(made / file, device="cpu", threads=1) as model:
        want = model(images)
        for same in (frozen, strided, np.flip(np.flip(images, 3).copy(), 3), torch.from_numpy(images).requires_grad_()):
            np.testing.assert_array_equal(model(same), want)
        again = want.copy()
        model(images[::-1])
        np.testing.assert_array_equal(want, again)  # an answer stays what it was


@pytest.mark.parametrize("name", ENGINES)
def test_many_threads_get_their_own_answers(made: Path, reference: Reference, name: str) -> None:
    """More batch sizes than are kept, unless each is compiled: sessions come and go while others wait for them."""
    found = next(found for found in find(made) if backends.serves(backends.get(name), found))
    sizes = (1, 2) if name in ("compiled", "aoti") else tuple(range(1, sessions.KEPT + 3))
    wrong: list[str] = []
    with load(found.path, backend=name, device="cpu", threads=1) as model:
        want = model(reference.images[:32])
        scale = float(np.abs(want).max())

        def ask(number: int) -> None:
            random = np.random.default_rng(number)
            for _ in range(8):
                size = int(random.choice(sizes))
                chosen = random.integers(0, 32, size)
                logits = model(reference.images[chosen])
                if logits.shape != want[chosen].shape or np.abs(logits - want[chosen]).max() > 0.02 * scale:
                    wrong.append(f"thread {number}, {size} images")

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
        assert not any(thread.is_alive() for thread in threads)
        assert wrong == []
        assert len(model._sessions._seats) <= sessions.KEPT


def test_sessions_beyond_those_kept_are_closed(made: Path, reference: Reference) -> None:
    with load(made / FP32, device="cpu", threads=1) as model:
        first = model._sessions._seats[1]
        assert first.session
        for size in range(2, sessions.KEPT + 2):
            model(reference.images[:size])
        assert (first.left, first.session) == (True, None)
        assert list(model._sessions._seats) == list(range(2, sessions.KEPT + 2))
        model(reference.images[:2])
        assert list(model._sessions._seats)[-1] == 2
        assert model(reference.images[:1]).shape == (1, len(model.classes))


def test_a_closed_model_says_so(made: Path, reference: Reference) -> None:
    model = load(made / FP32, device="cpu", threads=1)
    model.close()
    model.close()
    with pytest.raises(UserError, match="closed; load it again"):
        model(reference.images[:1])
    assert model.attested == {}


def test_closing_waits_for_the_calls_that_run(made: Path, reference: Reference) -> None:
    model = load(made / FP32, device="cpu", threads=1)
    ended: list[str] = []

    def ask() -> None:
        try:
            while True:
                model(reference.images)
        except UserError as error:
            ended.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    model.close()
    for thread in threads:
        thread.join(60)
    assert len(ended) == 3
    assert all("closed" in text for text in ended)


def test_pytorchs_gradients_stay_as_the_program_has_them(made: Path, reference: Reference) -> None:
    assert torch.is_grad_enabled()
    model = load(made / "simplecnn-torch-exact-fp32.safetensors", device="cpu", threads=1)
    assert torch.is_grad_enabled()
    model(reference.images[:1])
    assert torch.is_grad_enabled()
    model.close()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "nowhere.onnx"}, "no such file"),
        ({"backend": "onnxruntim"}, "did you mean onnxruntime"),
        ({"backend": "eager"}, "eager does not run .* choose backend= from onnxruntime"),
        ({"backend": "null"}, "null does not run"),
        ({"device": "gpu"}, "unknown device 'gpu'; did you mean|unknown device 'gpu'; choose from auto"),
        ({"threads": 0}, "threads=0: this process may use"),
        ({"threads": 4096}, "give at most as many"),
        ({"batch": 0}, "batch=0: give at least 1"),
        ({"graph": "some"}, "choose from all, extended"),
        ({"mode": "default"}, "no chosen backend has an option 'mode'"),
    ],
)
def test_mistakes_in_loading_are_one_line(made: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as found:
        load(**{"path": made / FP32, "device": "cpu", **arguments})  # type: ignore[arg-type]
    said(found)


def test_a_gpu_that_is_not_there_is_a_reason(made: Path) -> None:
    if backends.gpu():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="onnxruntime on cuda: no NVIDIA GPU"):
        load(made / FP32, device="cuda")


def test_a_file_that_is_not_the_one_recorded_is_not_loaded(made: Path, tmp_path: Path) -> None:
    for path in made.glob("*.*"):
        shutil.copy(path, tmp_path)
    content = bytearray((tmp_path / INT8).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / INT8).write_bytes(content)
    with pytest.raises(UserError, match="sha256 differs"):
        load(tmp_path / INT8)
    beside = (tmp_path / FP32).with_suffix(".data")  # its record vouches for another file
    beside.write_bytes(b"anything")
    with pytest.raises(UserError, match=f"not what an engine loads; give .*{FP32}"):
        load(beside)


def test_a_file_without_a_record_is_loaded_for_what_it_is(made: Path, reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / "foreign.onnx"
    path.write_bytes((made / FP32).read_bytes())
    with load(path, device="cpu", threads=1) as model, load(made / FP32, device="cpu", threads=1) as known:
        assert (model.record, model.classes, model.preprocess) == (None, (), None)
        np.testing.assert_array_equal(model(reference.images), known(reference.images))
        with pytest.raises(UserError, match="no record of its classes"):
            model.predict(path)
        with pytest.raises(UserError, match="shape"):
            model(reference.images[:, :, 1:])


def test_an_engines_refusal_is_a_backend_error(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 4, 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Unheard", ["x"], ["y"], domain="of")], "g", [x], [y])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("of", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "strange.onnx")
    with pytest.raises(BackendError, match="Unheard") as found:
        load(tmp_path / "strange.onnx", device="cpu")
    said(found)


def test_a_file_of_pixels_at_a_fixed_batch_size(made: Path, reference: Reference, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "simplecnn")
    succeed("export", "simplecnn", "--batch", 4, "--input-dtype", "uint8", "--verify-images", 16, "--artifacts",
            tmp_path, "--cache", made.parent.parent / "cache")  # fmt: skip
    path = next(found.path for found in find(tmp_path / "simplecnn")
                if found.record and found.record.variant.input_dtype == "uint8")  # fmt: skip
    with load(path, device="cpu", threads=1) as model, load(made / FP32, device="cpu", threads=1) as plain:
        assert model.preprocess
        pixels = reference.as_pixels(model.preprocess).images[:4]
        np.testing.assert_allclose(model(pixels), plain(reference.images[:4]), atol=1e-3)
        with pytest.raises(UserError, match=r"float32; give uint8 \[4, "):
            model(reference.images[:4])
        with pytest.raises(UserError, match="3 of them, and the file's batch size is fixed"):
            model(pixels[:3])
    with pytest.raises(UserError, match="batch=3: give 4, at which the file is fixed"):
        load(path, device="cpu", batch=3)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
def test_a_picture_gets_the_preprocessing_of_the_record(model: Model, tmp_path: Path, mode: str) -> None:
    assert model.preprocess
    height, width = model.preprocess.size
    drawn = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)).convert(mode)
    drawn.save(tmp_path / "picture.png")
    found = model.predict(tmp_path / "picture.png", top=3)
    assert found == model.predict(str(tmp_path / "picture.png"))[:3] == model.predict(drawn, top=3)
    assert found == sorted(found, key=lambda pair: -pair[1])
    assert sum(share for _, share in model.predict(drawn, top=len(model.classes))) == pytest.approx(1)
    channels = model.record.inputs[0].shape[1] if model.record else None
    pixels = np.asarray(drawn.convert("L" if channels == 1 else "RGB")).reshape(1, height, width, -1)
    logits = model(prepare(torch.from_numpy(pixels.copy()), model.preprocess).numpy())
    assert found[0][0] == model.classes[int(logits.argmax())]
    assert found[0][1] == pytest.approx(float(torch.from_numpy(logits).softmax(1).max()), rel=1e-4)


def test_a_picture_of_another_size_is_scaled_and_what_is_none_is_refused(model: Model, tmp_path: Path) -> None:
    assert len(model.predict(Image.new("RGB", (300, 170), "gray"))) == 5
    (tmp_path / "text.png").write_text("this is text")
    for name in ("text.png", "nowhere.png"):
        with pytest.raises(UserError, match=name) as found:
            model.predict(tmp_path / name)
        said(found)
    Image.effect_noise((64, 64), 80).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    with Image.open(tmp_path / "cut.png") as lazy, pytest.raises(UserError, match=r"cut\.png") as found:
        model.predict(lazy)
    said(found)


def test_the_best_is_the_reports_fastest_row_with_its_settings(
    benched: Path, report: Report, reference: Reference
) -> None:
    fastest = report.fastest("simplecnn", report.conditions("simplecnn")[0], 100.0)[0]
    with best("simplecnn", max_drop=100.0, device="cpu", artifacts=benched) as model:
        assert (model.backend, model.device) == (fastest.cell.backend, "cpu")
        assert model.record
        assert model.record.file.sha256 == report.subject(fastest).sha256
        assert model(reference.images).shape == reference.logits.shape
        if model.backend == "onnxruntime":
            assert model.attested["graph"] == "basic"


def test_the_best_runs_where_fewer_cores_may_be_used_than_were(benched: Path, reference: Reference) -> None:
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(usable)})
    try:
        with best("simplecnn", max_drop=100.0, device="cpu", artifacts=benched) as model:
            assert model(reference.images).shape == reference.logits.shape
            assert "1 threads" in repr(model)
    finally:
        os.sched_setaffinity(0, usable)


def test_the_best_keeps_within_the_drop_and_to_files_that_are_as_measured(benched: Path, report: Report) -> None:
    rows = report.fastest("simplecnn", report.conditions("simplecnn")[0], 100.0)
    names = [report.subject(row).name for row in rows]
    for subject in report.subjects:  # as if made again since, all but the slowest
        if subject.name != names[-1]:
            path = benched / "simplecnn" / f"{subject.name}.json"
            document = json.loads(path.read_text())
            document["files"][0]["sha256"] = "0" * 64
            path.write_text(json.dumps(document))
    with best("simplecnn", max_drop=100.0, device="cpu", artifacts=benched) as model:
        assert names[-1] in repr(model)
    with pytest.raises(UserError, match=r"no verified row of simplecnn at batch 1 within -100 points .* or: python -m"):
        best("simplecnn", max_drop=-100, device="cpu", artifacts=benched)
    with pytest.raises(UserError, match="no verified row of simplecnn at batch 8"):
        best("simplecnn", max_drop=100, device="cpu", batch=8, artifacts=benched)


def test_the_best_needs_a_report_of_this_machine(benched: Path, report: Report) -> None:
    (benched / "reports" / "2.json").write_text("{ broken")
    elsewhere = msgspec.structs.replace(report.environment, host="another")
    msgspec.structs.replace(report, environment=elsewhere).save(benched / "reports" / "1.json")
    with pytest.raises(UserError, match="has no report of simplecnn on this machine's cpu; make one: ") as found:
        best("simplecnn", device="cpu", artifacts=benched)
    assert "runtime bench simplecnn --device cpu --batch 1" in said(found)
    with pytest.raises(UserError, match=r"no model 'simplecnnn' .* there are: simplecnn"):
        best("simplecnnn", device="cpu", artifacts=benched)


def test_every_example_of_the_document_runs(made: Path, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    examples = re.findall(r"^```(sh|python)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert {language for language, _ in examples} == {"sh", "python"}
    shutil.copytree(made, tmp_path / "artifacts" / "simplecnn")
    Image.new("L", (40, 30), 200).save(tmp_path / "picture.png")
    printed = ""
    for language, code in examples:
        command = [sys.executable, *code.split()[1:]] if language == "sh" else [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, f"{code}\n{done.stderr}"
        printed = done.stdout
    assert len(re.findall(r"^.+: \d+\.\d%$", printed, re.MULTILINE)) == 3

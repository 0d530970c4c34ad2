"""Exact graph rewrites match where they should, compute the same, and are caught where they do not."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from torchvision.models.convnext import CNBlockConfig

from export import rewrites
from export.exporters import Request, write_onnx
from export.rewrites import Applied, Rewrite
from trainers import models
from trainers.manifest import CheckFailed, UserError

Made = tuple[onnx.ModelProto, torch.nn.Module, tuple[int, int, int]]
SQRT2, LN_EPSILON = "1.41421356", 1e-5


# --- graphs ---------------------------------------------------------------------------------------------------------


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """With norms and layer scales that matter."""
    for part in module.modules():
        if isinstance(part, torch.nn.LayerNorm | torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.weight, 0.5, 1.5)
            torch.nn.init.normal_(part.bias, std=0.2)
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.running_var, 0.5, 1.5)
            torch.nn.init.normal_(part.running_mean, std=0.2)
        if isinstance(part, torchvision.models.convnext.CNBlock):
            torch.nn.init.uniform_(part.layer_scale, 0.5, 1.5)
    return module.eval()


def ours(name: str, **options: object) -> tuple[torch.nn.Module, tuple[int, int, int]]:
    spec = models.get(name)
    chosen = {**spec.options, **options}
    shape = spec.shape(chosen)
    return spec.build(num_classes=spec.num_classes, input_shape=shape, **chosen), shape


FEW_BLOCKS = [CNBlockConfig(*stage) for stage in ((32, 64, 1), (64, 96, 1), (96, 128, 1), (128, None, 2))]
MODULES: dict[str, Callable[[], tuple[torch.nn.Module, tuple[int, int, int]]]] = {
    "convnext": lambda: ours("convnext", size=32, blocks="1,1,1,1"),
    "resnet18": lambda: ours("resnet18"),
    "simplecnn": lambda: ours("simplecnn"),
    "mobilenet": lambda: (torchvision.models.mobilenet_v3_small(num_classes=10), (3, 64, 64)),
    "torchvision_convnext": lambda: (torchvision.models.ConvNeXt(FEW_BLOCKS, num_classes=10), (3, 64, 64)),
}


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, int], Made]:
    """(graph, module, input shape) of a model by an exporter at an opset; each is exported once."""
    made: dict[tuple[str, str, int], Made] = {}
    folder = tmp_path_factory.mktemp("graphs")

    def export(name: str, exporter: str, opset: int) -> Made:
        key = (name, exporter, opset)
        if key not in made:
            torch.manual_seed(1)
            module, shape = MODULES[name]()
            path = folder / f"{name}-{exporter}-{opset}.onnx"
            write_onnx(exporter, randomised(module), path, Request(input_shape=shape, batch=None, opset=opset))
            made[key] = (onnx.load(path), module, shape)
        return made[key]

    return export


def graph(text: str, *, opset: int = 20, **weights: np.ndarray) -> onnx.ModelProto:
    """A model from ONNX's text form: `g (float[N,4] x) => (float[N,4] y) { … }`, and its weights by name."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]>\n{text}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(content, name) for name, content in weights.items())
    typed = onnx.shape_inference.infer_shapes(model)  # the outputs, where the text leaves their type out
    del typed.graph.value_info[:]
    return typed


def rewritten(model: onnx.ModelProto, *names: str) -> tuple[onnx.ModelProto, int]:
    """The graph after these rewrites, each proved by `rewrite` itself, and in how many places they matched."""
    after, steps = rewrites.rewrite(model, names)
    return after, sum(step.matched for step in steps)


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


# --- the table ------------------------------------------------------------------------------------------------------


def test_every_module_that_rewrites_is_in_the_table() -> None:
    found = {name for _, name, _ in pkgutil.iter_modules(rewrites.__path__)}
    modules = {name for name in found if hasattr(importlib.import_module(f"export.rewrites.{name}"), "apply")}
    assert {name.replace("-", "_") for name in rewrites.NAMES} == modules
    assert all(rewrites.get(name).name == name for name in rewrites.NAMES)


def test_the_table_is_known_without_onnx() -> None:
    program = (
        "import sys; from export import rewrites; from export.rewrites.applied import Applied\n"
        "assert rewrites.default('cpu') and rewrites.parse('all') == rewrites.NAMES\n"
        "print(sorted({'onnx', 'onnx_ir', 'numpy', 'torch', 'onnxruntime'} & set(sys.modules)))"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


def test_names() -> None:
    assert rewrites.parse("none") == ()
    assert rewrites.parse("dead-taps, fold-batchnorm") == ("fold-batchnorm", "dead-taps")  # in order of application
    with pytest.raises(UserError, match="did you mean dead-taps"):
        rewrites.parse("dead-tap")
    assert "depthwise-split" in rewrites.default("cpu")
    assert "depthwise-split" not in rewrites.default("tensorrt")
    assert set(rewrites.default(None)) == set.intersection(*(set(rewrites.default(t)) for t in rewrites.TARGETS))


# --- real graphs ----------------------------------------------------------------------------------------------------

slow = pytest.mark.slow
REAL = [
    pytest.param("convnext", "eager", 17, {"fold-constants": 12, "fuse-gelu": 4, "depthwise-split": 4, "dead-taps": 8}),
    pytest.param("convnext", "dynamo", 18, {"fuse-gelu": 4, "depthwise-split": 4, "dead-taps": 8}, marks=slow),
    pytest.param("convnext", "dynamo", 23, {"depthwise-split": 4, "dead-taps": 8}, marks=slow),
    pytest.param("resnet18", "eager", 20, {"dead-taps": 4}),
    pytest.param("resnet18", "dynamo", 20, {"dead-taps": 4}, marks=slow),
    pytest.param("simplecnn", "dynamo", 20, {}),
    pytest.param("mobilenet", "eager", 20, {"fold-constants": 5, "dead-taps": 2, "share-initializers": 5}, marks=slow),
    pytest.param(
        "torchvision_convnext",
        "eager",
        17,
        {"fold-constants": 27, "fuse-gelu": 5, "dead-taps": 2, "share-initializers": 12},
        marks=slow,
    ),
    pytest.param("torchvision_convnext", "dynamo", 20, {"dead-taps": 2}, marks=slow),
]


@pytest.mark.parametrize(("name", "exporter", "opset", "expected"), REAL)
def test_real_graphs(
    exported: Callable[[str, str, int], Made], name: str, exporter: str, opset: int, expected: dict[str, int]
) -> None:
    before, module, shape = exported(name, exporter, opset)
    kept = before.SerializeToString()
    after, steps = rewrites.rewrite(before, rewrites.NAMES)
    assert before.SerializeToString() == kept
    assert {step.name: step.matched for step in steps if step.matched} == expected
    assert [value.name for value in (*after.graph.input, *after.graph.output)] == ["images", "logits"]
    for batch in (1, 3):
        images = torch.randn(batch, *shape)
        with torch.no_grad():
            logits = module(images).numpy()
        np.testing.assert_allclose(run(after, images.numpy()), logits, atol=1e-4 * logits.std())
    again, repeated = rewrites.rewrite(after, rewrites.NAMES)
    assert again is after
    assert not any(step.matched for step in repeated)


def test_most_of_a_small_resnet_is_dead(exported: Callable[[str, str, int], Made]) -> None:
    before, _, _ = exported("resnet18", "eager", 20)
    after, (step,) = rewrites.rewrite(before, ["dead-taps"])
    before_weights, after_weights = (sum(int(np.prod(t.dims)) for t in m.graph.initializer) for m in (before, after))
    # Three 3x3 kernels of 512x512 on a map of one pixel keep 1 tap of 9, one of 512x256 on 2x2, stride 2, keeps 4.
    assert before_weights - after_weights == 3 * 8 * 512 * 512 + 5 * 512 * 256 == 6_946_816
    assert step.bytes_before - step.bytes_after == pytest.approx(4 * 6_946_816, rel=1e-3)


def test_batchnorm_of_a_real_graph_is_folded(tmp_path: Path) -> None:
    torch.manual_seed(1)
    module, shape = ours("resnet18")
    randomised(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (torch.zeros(2, *shape),), str(tmp_path / "norms.onnx"), dynamo=False, opset_version=17,
            training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
        )  # fmt: skip
    before = onnx.load(tmp_path / "norms.onnx")
    after, matched = rewritten(before, "fold-batchnorm")
    assert (operators(before).count("BatchNormalization"), matched) == (20, 20)
    assert "BatchNormalization" not in operators(after)
    images = torch.randn(2, *shape)
    with torch.no_grad():
        np.testing.assert_allclose(run(after, images.numpy()), module(images).numpy(), atol=1e-4)


# --- GELU -----------------------------------------------------------------------------------------------------------


def formula(body: str, **keywords: object) -> onnx.ModelProto:
    return graph(f"g (float[N,4] x) => (float[N,4] y) {{ {body} }}", **keywords)  # type: ignore[arg-type]


HALF, ONE, CUBE = "half = Constant<value_float=0.5>()", "one = Constant<value_float=1.0>()", "0.044715"
ERF = f"r = Constant<value_float={SQRT2}>() {HALF} {ONE} d = Div(x, r) e = Erf(d) s = Add(one, e)"
TANH = (
    f"{HALF} {ONE} c = Constant<value_float={CUBE}>() k = Constant<value_float=0.79788456>() "
    "three = Constant<value_float=3.0>() x3 = Pow(x, three) q = Mul(c, x3) i = Add(x, q) j = Mul(i, k) e = Tanh(j) "
    "s = Add(e, one)"
)
GELUS = {
    "torchscript": (f"{ERF} p = Mul(x, s) y = Mul(p, half)", "none"),
    "dynamo": (f"{ERF} p = Mul(half, s) y = Mul(x, p)", "none"),
    "half first": (f"{ERF} p = Mul(half, x) y = Mul(s, p)", "none"),
    "a sum": (f"{ERF} p = Mul(half, x) q = Mul(p, e) y = Add(p, q)", "none"),
    "a product": (f"{ERF.replace('Div(x, r)', 'Mul(w, x)')} p = Mul(x, s) y = Mul(p, half)", "none"),
    "tanh": (f"{TANH} p = Mul(x, half) y = Mul(p, s)", "tanh"),
    "tanh of a product": (
        f"{TANH.replace('x3 = Pow(x, three)', 'xx = Mul(x, x) x3 = Mul(xx, x)')} p = Mul(s, x) y = Mul(half, p)",
        "tanh",
    ),
}


@pytest.mark.parametrize("form", GELUS)
@pytest.mark.parametrize("opset", [17, 20])
def test_a_gelu_is_fused_however_it_is_written(form: str, opset: int) -> None:
    body, approximate = GELUS[form]
    before = formula(body, opset=opset, w=np.float32(np.sqrt(0.5)))
    after, matched = rewritten(before, "fuse-gelu")
    assert matched == 1
    assert operators(after) == ["Gelu"]
    assert after.opset_import[0].version == 20
    attributes = {attribute.name: attribute.s.decode() for attribute in after.graph.node[0].attribute}
    assert attributes["approximate"] == approximate


def test_the_result_of_one_gelu_is_the_input_of_the_next() -> None:
    second = "d2 = Div(z, r) e2 = Erf(d2) s2 = Add(one, e2) p2 = Mul(z, s2) y = Mul(p2, half)"
    before = formula(f"{ERF} p = Mul(x, s) z = Mul(p, half) {second}")
    after, matched = rewritten(before, "fuse-gelu")
    assert matched == 2
    assert operators(after) == ["Gelu", "Gelu"]


@pytest.mark.parametrize(
    "body",
    [
        f"{ERF.replace(SQRT2, '1.4')} p = Mul(x, s) y = Mul(p, half)",
        f"{ERF} p = Mul(x, s) y = Mul(p, one)",
        f"{ERF} p = Mul(e, s) y = Mul(p, half)",
        f"{ERF.replace('Add(one, e)', 'Add(half, e)')} p = Mul(x, s) y = Mul(p, half)",
        f"{TANH.replace(CUBE, '0.0447')} p = Mul(x, half) y = Mul(p, s)",
        f"{TANH.replace('Tanh', 'Erf')} p = Mul(x, half) y = Mul(p, s)",
        f"{ERF.replace('Div(x, r)', 'Div(r, x)')} p = Mul(x, s) y = Mul(p, half)",
    ],
)
def test_what_is_no_gelu_is_left_alone(body: str) -> None:
    before = formula(body)
    assert rewritten(before, "fuse-gelu") == (before, 0)


# --- LayerNorm ------------------------------------------------------------------------------------------------------


def layernorm(
    shape: str = "N,4,3,5", axes: str = "-1", square: str = "v = Pow(d, two)", divide: str = "n = Div(d, s)",
    end: str = "z = Mul(n, g) y = Add(z, b)", inner: str | None = None, **weights: np.ndarray,
) -> onnx.ModelProto:  # fmt: skip
    return graph(
        f"""g (float[{shape}] x) => (float[{shape}] y) {{
        two = Constant<value_float=2.0>() eps = Constant<value_float={LN_EPSILON}>()
        axes = Constant<value_ints=[{axes}]>() inner = Constant<value_ints=[{inner or axes}]>()
        m = ReduceMean(x, axes) d = Sub(x, m) {square} w = ReduceMean(v, inner) t = Add(w, eps) s = Sqrt(t)
        {divide} {end} }}""",
        **(weights or {"g": normal(5), "b": normal(5)}),
    )


@pytest.mark.parametrize(
    ("keywords", "axis", "inputs"),
    [
        ({}, -1, 3),
        ({"square": "v = Mul(d, d)", "divide": "r = Reciprocal(s) n = Mul(r, d)"}, -1, 3),
        ({"axes": "1, 2, 3", "g": normal(4, 3, 5), "b": normal(4, 1, 1)}, -3, 3),
        ({"axes": "-2, -1", "end": "y = Mul(n, g)", "g": normal(1, 1, 3, 5)}, -2, 2),
        ({"end": "y = Identity(n)"}, -1, 2),
        ({"end": "y = Mul(n, g)", "g": normal(4, 1, 1)}, -1, 2),  # a factor for each channel is no scale of this norm
    ],
)
def test_a_layernorm_is_fused(keywords: dict[str, object], axis: int, inputs: int) -> None:
    after, matched = rewritten(layernorm(**keywords), "fuse-layernorm")  # type: ignore[arg-type]
    assert matched == 1
    assert not {"ReduceMean", "Sqrt", "Sub"} & set(operators(after))
    node = next(node for node in after.graph.node if node.op_type == "LayerNormalization")
    assert {attribute.name: attribute.i for attribute in node.attribute}["axis"] == axis
    assert len(node.input) == inputs


def test_the_result_of_one_layernorm_is_the_input_of_the_next() -> None:
    second = (
        "z = Mul(n, g) m2 = ReduceMean(z, axes) d2 = Sub(z, m2) v2 = Mul(d2, d2) w2 = ReduceMean(v2, axes) "
        "t2 = Add(eps, w2) s2 = Sqrt(t2) n2 = Div(d2, s2) y = Add(n2, b)"
    )
    after, matched = rewritten(layernorm(end=second), "fuse-layernorm")
    assert matched == 2
    assert operators(after) == ["LayerNormalization", "LayerNormalization"]


@pytest.mark.parametrize(
    "keywords",
    [
        {"axes": "1", "end": "y = Identity(n)"},  # over channels first: no trailing axes
        {"axes": "1, 3", "end": "y = Identity(n)"},
        {"axes": "-1", "inner": "-2, -1", "end": "y = Identity(n)"},
        {"square": "v = Pow(x, two)"},
        {"square": "v = Mul(d, x)"},
        {"divide": "n = Div(x, s)"},
        {"divide": "n = Div(s, d)"},
        {"shape": "N,4,3,W", "end": "y = Identity(n)"},  # the size is not known
    ],
)
def test_what_is_no_layernorm_is_left_alone(keywords: dict[str, str]) -> None:
    before = layernorm(**keywords)
    assert rewritten(before, "fuse-layernorm") == (before, 0)


# --- BatchNormalization ---------------------------------------------------------------------------------------------


def batchnorm(
    head: str, tail: str = "", training: int = 0, shape: str = "N,4,5,5", **weights: np.ndarray
) -> onnx.ModelProto:
    outputs = "z, m2, v2" if training else "z"
    return graph(
        f"""g (float[{shape}] x) => (y) {{
        {head} {outputs} = BatchNormalization<training_mode={training}, epsilon=0.01>(c, s, b, m, v)
        {tail or "y = Relu(z)"} }}""",
        s=normal(6), b=normal(6), m=normal(6), v=np.abs(normal(6)) + 0.1, w=normal(6, 4, 3, 3), **weights,
    )  # fmt: skip


@pytest.mark.parametrize(
    "made",
    [
        batchnorm("c = Conv(x, w)"),
        batchnorm("c = Conv<group=2, pads=[1,1,1,1]>(x, w2, k)", w2=normal(6, 2, 3, 3), k=normal(6)),
        batchnorm("c = Gemm<alpha=0.5, beta=2.0>(x, w2, k)", shape="N,4", w2=normal(4, 6), k=normal(1, 6)),
        batchnorm("c = Gemm<transB=1>(x, w2)", shape="N,4", w2=normal(6, 4)),
    ],
)
def test_batchnorm_is_folded(made: onnx.ModelProto) -> None:
    after, matched = rewritten(made, "fold-batchnorm")
    assert matched == 1
    assert operators(after) == [made.graph.node[0].op_type, "Relu"]


@pytest.mark.parametrize(
    "made",
    [
        batchnorm("c = Conv(x, w)", "r = Relu(c) y = Add(z, r)"),
        batchnorm("c = Conv(x, w)", training=1),
        batchnorm("c0 = Conv(x, w) c = Relu(c0)"),
        batchnorm("w2 = Abs(x) c = Conv(x, w2)", shape="6,6,1,1"),
        batchnorm("c = Gemm(x, w2, x)", shape="6,6", w2=normal(6, 6)),
    ],
)
def test_batchnorm_that_cannot_be_folded_stays(made: onnx.ModelProto) -> None:
    assert rewritten(made, "fold-batchnorm") == (made, 0)


# --- depthwise split ------------------------------------------------------------------------------------------------


def widening(tail: str, *, groups: int = 4, w: np.ndarray | None = None, **weights: np.ndarray) -> onnx.ModelProto:
    return graph(
        f"""g (float[N,4,6,6] x) => (y) {{
        h = Conv<group={groups}, pads=[1,1,1,1]>(x, w, k) {tail} }}""",
        w=normal(12, 4 // groups, 3, 3) if w is None else w, k=normal(12), p=normal(5, 12, 1, 1), **weights,
    )  # fmt: skip


NORM = {"s": normal(12, 6, 6), "b": normal(12, 6, 6)}
FOLDABLE = {
    "relu": widening("r = Relu(h) y = Conv(r, p)"),
    "map norm": widening("n = LayerNormalization<axis=1>(h, s, b) y = Conv(n, p)", **NORM),
    "norm within a channel": widening("n = LayerNormalization<axis=-2>(h, s) y = Conv(n, p)", s=normal(6, 6)),
    "written-out gelu": widening(f"{ERF.replace('(x', '(h')} q = Mul(h, s) z = Mul(q, half) y = Conv(z, p)"),
    "batchnorm": widening(
        "n = BatchNormalization(h, s, b, m, v) c = Clip(n, zero) y = Conv(c, p)",
        s=normal(12), b=normal(12), m=normal(12), v=np.abs(normal(12)) + 0.1, zero=np.float32(0),
    ),
    "channel constants": widening(
        "a = Mul(h, s) b2 = Add(m, a) q = PRelu(b2, t) y = Conv(q, p)",
        s=normal(12, 1, 1), m=normal(1, 12, 1, 1), t=normal(12, 1, 1),
    ),
    "another depthwise": widening("d = Conv<group=12>(h, u, k2) y = Conv(d, p)", u=normal(12, 1, 3, 3), k2=normal(12)),
    "two readers": widening(
        "a = Conv(h, p) b2 = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(h) c = Conv(b2, p) y = Add(a, c)"
    ),
    "a sum of both": widening("r = Relu(h) t = Add(r, h) y = Conv(t, p)"),
}  # fmt: skip


@pytest.mark.parametrize("form", FOLDABLE)
def test_a_widening_depthwise_convolution_is_split(form: str) -> None:
    after, matched = rewritten(FOLDABLE[form], "depthwise-split")
    assert matched == 1
    depthwise = [n for n in after.graph.node if n.op_type == "Conv" and n.input[0] == "x"]
    shapes = {tensor.name: list(tensor.dims) for tensor in after.graph.initializer}
    assert [shapes[node.input[1]] for node in depthwise] == [[4, 1, 3, 3]] * 3
    assert "Gather" not in operators(after)


@pytest.mark.parametrize(
    "before",
    [
        widening("y = Relu(h)"),  # the order is seen
        widening("o = Conv(x, u) t = Add(h, o) y = Conv(t, p)", u=normal(12, 4, 1, 1)),  # meets the old order
        widening("r = Reshape(h, z) y = Relu(r)", z=np.array([0, 2, 6, 6, 6])),
        widening("r = Relu(h) y = Conv<group=2>(r, q)", q=normal(4, 6, 1, 1)),
        widening("y = Conv(h, p)", groups=2, w=normal(12, 2, 3, 3)),  # grouped, not depthwise
        widening("a = Conv(h, p) y, z = Split<axis=1, num_outputs=2>(h)"),
        widening("q = GlobalAveragePool(h) e = Conv(q, u) r = Mul(h, e) y = Conv(r, p)", u=normal(12, 12, 1, 1)),
    ],
)
def test_a_split_that_would_show_is_not_made(before: onnx.ModelProto) -> None:
    assert rewritten(before, "depthwise-split") == (before, 0)


# --- dead taps ------------------------------------------------------------------------------------------------------


def conv(height: int, width: int, kernel: np.ndarray, attributes: str) -> onnx.ModelProto:
    text = f"g (float[N,4,{height},{width}] x) => (y) {{ y = Conv<{attributes}>(x, w, b) }}"
    return graph(text, w=kernel, b=normal(len(kernel)))


def kernel_of(model: onnx.ModelProto) -> tuple[int, ...]:
    """The shape of the first node's weight."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return shapes[model.graph.node[0].input[1]]


def has_dead_taps(size: int, taps: int, stride: int, dilation: int, before: int, after: int) -> bool:
    """By trying, along one axis: an outer tap adds nothing to any output of a row of ones, and another tap does."""
    padded = torch.nn.functional.pad(torch.ones(1, 1, size), (before, after))
    each = torch.eye(taps).unsqueeze(1)  # as many kernels, of one tap each
    met = torch.nn.functional.conv1d(padded, each, stride=stride, dilation=dilation).amax((0, 2)) > 0
    return bool(met.any()) and not bool(met[0] and met[-1])


def test_dead_taps_of_every_geometry() -> None:
    for size, taps, stride, dilation, pads in product(
        ((1, 1), (2, 1), (5, 8)), (1, 3, 4), (1, 2, 3), (1, 2), ((0, 0, 0, 0), (1, 1, 1, 1), (3, 0, 2, 4))
    ):
        reach = dilation * (taps - 1) + 1
        if size[0] + pads[0] + pads[2] < reach or size[1] + pads[1] + pads[3] < reach:
            continue
        attributes = f"strides=[{stride},{stride}], dilations=[{dilation},{dilation}], pads={list(pads)}, group=2"
        _, matched = rewritten(conv(*size, normal(6, 2, taps, taps), attributes), "dead-taps")
        rows, columns = (
            has_dead_taps(size[axis], taps, stride, dilation, pads[axis], pads[axis + 2]) for axis in (0, 1)
        )
        # With dilation a dead tap may have to stay: the one after it would start beyond the first pixel.
        assert matched == (rows or columns) or (dilation > 1 and not matched), (size, attributes)


@pytest.mark.parametrize(
    ("size", "attributes", "kept"),
    [
        ((1, 1), "pads=[1,1,1,1]", (1, 1)),
        ((2, 2), "pads=[1,1,1,1], strides=[2,2]", (2, 2)),
        ((1, 4), "pads=[1,1,1,1]", (1, 3)),
        ((1, 1), 'auto_pad="SAME_UPPER"', (1, 1)),
        ((2, 1), 'auto_pad="SAME_LOWER", strides=[2,2]', (2, 1)),
        ((2, 2), "pads=[2,2,2,2], dilations=[2,2]", (1, 1)),
    ],
)
def test_the_taps_that_stay(size: tuple[int, int], attributes: str, kept: tuple[int, int]) -> None:
    after, matched = rewritten(conv(*size, normal(2, 4, 3, 3), attributes), "dead-taps")
    assert matched == 1
    assert kernel_of(after)[2:] == kept


@pytest.mark.parametrize(
    "before",
    [
        conv(
            8, 8, normal(2, 4, 3, 3), "pads=[1,1,1,1], strides=[2,2]"
        ),  # padding that no output reads, but no dead tap
        conv(2, 2, normal(2, 4, 3, 3), "pads=[1,1,1,1]"),
        graph("g (float[N,4,H,W] x) => (y) { y = Conv<pads=[1,1,1,1]>(x, w) }", w=normal(2, 4, 3, 3)),
        graph("g (float[1,4,1,1] x, float[2,4,3,3] w) => (y) { y = Conv<pads=[1,1,1,1]>(x, w) }"),
    ],
)
def test_live_taps_stay(before: onnx.ModelProto) -> None:
    assert rewritten(before, "dead-taps") == (before, 0)


# --- constants and initializers -------------------------------------------------------------------------------------


def test_constants_are_folded_and_what_does_nothing_goes() -> None:
    before = graph(
        """g (float[N,4,2] x) => (float[N,K] y) {
        one = Constant<value_float=1.0>() a = Mul(x, one) b = Identity(a)
        t1 = Transpose<perm=[0,2,1]>(b) t2 = Transpose<perm=[0,2,1]>(t1)
        w2 = Transpose<perm=[1,0]>(w) f = Flatten<axis=1>(t2) s1 = Softmax(f) s2 = Softmax(f) s = Add(s1, s2)
        y = MatMul(s, w2) }""",
        w=normal(3, 8), unused=normal(100),
    )  # fmt: skip
    after, matched = rewritten(before, "fold-constants")
    assert sorted(operators(after)) == ["Add", "Flatten", "MatMul", "Softmax"]
    assert matched == len(before.graph.node) - 4 + 1  # and the unused initializer
    assert len(after.graph.initializer) == 1


@pytest.mark.parametrize(
    ("operator", "value", "matched"),
    [("Add", 1e-8, 0), ("Sub", 1e-8, 0), ("Mul", 1 + 1e-6, 0), ("Div", 1 + 1e-6, 0),
     ("Add", 0, 1), ("Sub", 0, 1), ("Mul", 1, 1), ("Div", 1, 1)],
)  # fmt: skip
def test_only_what_does_exactly_nothing_goes(operator: str, value: float, matched: int) -> None:
    """Without the little that is added below a division, zeros become NaN."""
    before = graph(f"g (float[N,4] x) => (float[N,4] y) {{ s = {operator}(x, c) y = Relu(s) }}", c=np.float32(value))
    assert rewritten(before, "fold-constants")[1] == matched


def test_a_branch_may_not_return_what_was_computed_outside_it() -> None:
    before = graph(
        """g (float[N,4] x) => (float[N,4] y) {
        a = Relu(x) b = Mul(a, one) m = ReduceMax<keepdims=0>(x) c = Greater(m, zero)
        y = If(c) <then_branch = t () => (float[N,4] o) { o = Identity(b) },
                   else_branch = e () => (float[N,4] p) { p = Neg(b) }> }""",
        one=np.float32(1), zero=np.float32(0),
    )  # fmt: skip
    after, matched = rewritten(before, "fold-constants")  # which also runs both
    assert matched
    onnx.checker.check_model(after, full_check=True)


def test_quantized_weights_stay_quantized() -> None:
    before = graph(
        """g (float[N,4,3,3] x) => (y) {
        d = DequantizeLinear(q, scale, zero) i = Identity(d) c = Conv(x, i) y = Relu(c) }""",
        q=np.arange(72, dtype=np.int8).reshape(2, 4, 3, 3), scale=np.float32(0.1), zero=np.int8(0),
    )  # fmt: skip
    after, matched = rewritten(before, *rewrites.NAMES)
    assert matched == 1
    assert operators(after) == ["DequantizeLinear", "Conv", "Relu"]


def test_equal_initializers_are_shared_and_similar_ones_are_not() -> None:
    zeros = np.zeros(4, np.float32)
    before = graph(
        """g (float[N,4] x) => (float[N,4] y) {
        p = Add(x, a) q = Mul(p, b) r = Add(q, c) s = Add(r, d) i = Cast<to=1>(e) t = Add(s, i) y = Mul(t, f) }""",
        a=normal(4), b=normal(4), c=zeros, d=-zeros, e=np.zeros(4, np.int32), f=normal(1, 4)[0] * 0 + normal(4),
    )  # fmt: skip
    after, matched = rewritten(before, "share-initializers")
    assert matched == 2  # a, b and f
    assert len(after.graph.initializer) == 4


# --- the proof ------------------------------------------------------------------------------------------------------


def broken(change: Callable[[onnx.ModelProto], None]) -> Callable[[onnx.ModelProto], tuple[onnx.ModelProto, int]]:
    def apply(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
        wrong = onnx.ModelProto()
        wrong.CopyFrom(model)
        change(wrong)
        return wrong, 1

    return apply


def disturb(model: onnx.ModelProto) -> None:
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
    content = onnx.numpy_helper.to_array(weight).copy()
    content.ravel()[0] *= 1.01
    weight.CopyFrom(onnx.numpy_helper.from_array(content, weight.name))


def widen(model: onnx.ModelProto) -> None:
    pads = next(a for a in model.graph.node[0].attribute if a.name == "pads")
    del pads.ints[:]
    pads.ints.extend([2, 2, 2, 2])
    for axis in (2, 3):
        model.graph.output[0].type.tensor_type.shape.dim[axis].dim_param = f"size{axis}"


def misuse(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type, model.graph.node[0].domain = "Mystery", "nowhere"
    del model.graph.node[0].attribute[:]
    model.opset_import.append(onnx.helper.make_opsetid("nowhere", 1))


def unname(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "nothing"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (disturb, "dead-taps: outputs change by"),
        (widen, "became one of shape"),
        (unname, "dead-taps: onnx.checker refuses"),
        (misuse, "dead-taps: ONNX Runtime cannot run the graph"),
    ],
)
def test_a_wrong_rewrite_is_caught(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[onnx.ModelProto], None], says: str
) -> None:
    row = Rewrite(name="dead-taps", summary="", targets=(), apply=broken(change))
    monkeypatch.setitem(rewrites.REWRITES, "dead-taps", row)
    model = conv(6, 6, normal(2, 4, 3, 3), "pads=[1,1,1,1]")
    with pytest.raises(CheckFailed, match=says):
        rewrites.rewrite(model, ["fuse-gelu", "dead-taps"])


def test_agreement_of_constants_is_no_proof() -> None:
    before = graph(
        "g (float[N,4,1,1] x) => (y) { c = Conv<pads=[1,1,1,1]>(x, w) y = Relu(c) }",
        w=np.zeros((2, 4, 3, 3), np.float32),
    )
    with pytest.raises(CheckFailed, match="does not vary"):
        rewrites.rewrite(before, ["dead-taps"])


@pytest.mark.parametrize(
    ("kind", "says"), [("float[N,4,H,1]", "free dimensions besides its batch"), ("int64[N,4,1,1]", "is int64")]
)
def test_inputs_that_cannot_be_drawn_get_one_line(kind: str, says: str) -> None:
    before = graph(f"g ({kind} x) => (y) {{ f = Cast<to=1>(x) i = Identity(f) y = Relu(i) }}")
    with pytest.raises(UserError, match=says):
        rewrites.rewrite(before, ["fold-constants"])


def test_what_is_recorded() -> None:
    model = conv(1, 1, normal(2, 4, 3, 3), "pads=[1,1,1,1]")
    _, (unmatched, cropped) = rewrites.rewrite(model, ["fuse-gelu", "dead-taps"])
    size = model.ByteSize()
    assert unmatched == Applied(
        name="fuse-gelu", matched=0, nodes_before=1, nodes_after=1, bytes_before=size, bytes_after=size, max_error=0.0
    )
    assert (cropped.matched, cropped.bytes_before) == (1, size)
    assert cropped.bytes_after < size - 4 * 2 * 4 * 8 + 100
    assert cropped.max_error < 1e-6

"""What the exact graph rewrites are worth: inference on the graph before and after each, in turns, in one process.

    python benchmarks/graph_rewrites.py MODEL.onnx [--rewrites dead-taps,fuse-gelu] [--engine openvino --precision bf16]

Each rewrite that matches is timed alone, then all that were asked for together. Printed are the median time of the
plain graph's calls and, for each contender, the median of the round-by-round ratios with its 95% bootstrap interval.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from export import rewrites
from export.rewrites.proof import draw
from trainers import cli, stats

PLAIN, TURN_SECONDS = "plain", 0.02  # a turn is as many calls as take about so long
Call = Callable[[], object]


def onnxruntime_call(model: onnx.ModelProto, inputs: dict[str, np.ndarray], given: argparse.Namespace) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = given.threads, 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, inputs)


def openvino_call(model: onnx.ModelProto, inputs: dict[str, np.ndarray], given: argparse.Namespace) -> Call:
    import openvino

    read = openvino.Core().read_model(model.SerializeToString())
    read.reshape({name: list(content.shape) for name, content in inputs.items()})
    config = {
        "INFERENCE_PRECISION_HINT": given.precision,  # its own default may be bf16 for an fp32 file
        "INFERENCE_NUM_THREADS": given.threads,
        "NUM_STREAMS": 1,
    }
    request = openvino.compile_model(read, "CPU", config).create_infer_request()
    return lambda: request.infer(inputs)


ENGINES = {"onnxruntime": onnxruntime_call, "openvino": openvino_call}


def contenders(model: onnx.ModelProto, names: tuple[str, ...]) -> dict[str, onnx.ModelProto]:
    """The plain graph, each rewrite alone where it matches, and all together."""
    made = {PLAIN: model}
    for name in names:
        after, (step,) = rewrites.rewrite(model, [name])
        if step.matched:
            made[name] = after
    if len(names) > 1:
        made["all"] = rewrites.rewrite(model, names)[0]
    return made


def turn(call: Call, calls: int) -> float:
    """Seconds a call, over a turn."""
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) / calls


def rows(calls: dict[str, Call], sizes: dict[str, int], rounds: int) -> list[tuple[str, ...]]:
    for call in calls.values():
        turn(call, 3)
    count = max(1, round(TURN_SECONDS / turn(calls[PLAIN], 3)))
    taken = [{name: turn(call, count) for name, call in calls.items()} for _ in cli.track(range(rounds), "rounds")]
    shown = []
    for name in calls:
        own, plain = [row[name] for row in taken], [row[PLAIN] for row in taken]
        faster = stats.ratio(plain, own)
        interval = f"{faster.value:.3f} ({faster.low:.3f} to {faster.high:.3f})"
        shown.append((name, f"{1e3 * stats.median(own).value:.3f} ms", interval, cli.megabytes(sizes[name])))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rewrites", default="all", help="a comma list of names, or all")
    parser.add_argument("--engine", choices=ENGINES, default="onnxruntime")
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32", help="OpenVINO's arithmetic")
    parser.add_argument("--batch", type=cli.positive, default=1)
    parser.add_argument("--threads", type=cli.positive, default=2)
    parser.add_argument("--rounds", type=cli.positive, default=101)
    given = parser.parse_args()
    models = contenders(onnx.load(given.model), rewrites.parse(given.rewrites))
    inputs = draw(models[PLAIN].graph, given.batch, np.random.default_rng(0))
    calls = {name: ENGINES[given.engine](model, inputs, given) for name, model in models.items()}
    # The plain graph again: what its ratio differs from 1 by is noise.
    calls["plain again"] = ENGINES[given.engine](models[PLAIN], inputs, given)
    sizes = {name: model.ByteSize() for name, model in models.items()} | {"plain again": models[PLAIN].ByteSize()}
    title = f"{given.model.name}, {given.engine}, batch {given.batch}, {given.threads} threads, {given.rounds} rounds"
    cli.table(title, ("graph", ">median", ">times faster", ">file"), rows(calls, sizes, given.rounds))


if __name__ == "__main__":
    main()

"""Which models do the exporters take? Every image classifier of torchvision and timm's test models, through both.

    python benchmarks/survey.py                       all that the journal does not hold yet, then docs/survey.md
    python benchmarks/survey.py --models resnet18,timm:test_vit --report /tmp/survey.md

Weights are random, norms and all other constant parameters too, and the batch norms' statistics fit them, so that
every tensor shows in the logits. Each file is run in ONNX Runtime on a batch of 5 and of 1, where 2 were traced, and
compared with PyTorch. A model and an exporter at a time has a process, with bounded time and memory, and is kept in
the journal when it is done.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from export.exporters import EXPORTERS  # noqa: E402 (run as a script)
from trainers import cli  # noqa: E402
from trainers.manifest import UserError, write_atomic  # noqa: E402
from trainers.serving import die_with_parent, limit_memory, peak_bytes  # noqa: E402

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from torch import nn

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([
    "__main__", "torch", "torch.export", "torch._dynamo", "torchvision", "timm", "onnx", "onnxruntime", "onnxscript",
    "export.graph", "export.parity", "trainers.models",
])  # fmt: skip

BATCHES = (5, 1)
TOLERANCE = 2e-3  # of a logit's standard deviation between images
ROUNDING = 3.0  # or so many times what PyTorch's own fp32 is from float64: deep random models amplify the last bits
VARIES = 1e-4  # below this share of the logits' whole deviation, what the image changes is lost in the rounding
OPSETS = (20, 18)  # tried in this order


def names() -> list[str]:
    """All of torchvision's classifiers, and timm's small models made for tests."""
    import timm
    from torchvision import models

    vision = [f"torchvision:{name}" for name in models.list_models(module=models)]
    return vision + [f"timm:{name}" for name in timm.list_models("test_*")]


def build(name: str, size: int | None) -> tuple[nn.Module, tuple[int, int, int]]:
    """The model in eval mode with random weights, and its input's shape."""
    import torch

    from trainers import models

    spec = models.get(name)
    height, width = (size, size) if size else spec.input_shape[1:]
    shape = (spec.input_shape[0], height, width)
    torch.manual_seed(0)
    module = spec.build(num_classes=1000, input_shape=shape)
    return randomise(module, shape), shape


def randomise(module: nn.Module, shape: tuple[int, int, int]) -> nn.Module:
    """Give what an initialisation leaves constant random values, and batch norms the statistics of random images."""
    import torch
    from torch import nn

    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
                if float(parameter.flatten()[0]) > 0:
                    nn.init.uniform_(parameter, 0.5, 1.5)
                else:
                    nn.init.normal_(parameter, std=0.2 if parameter.dim() == 1 else 0.05)
        module.eval()
        norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        module(torch.randn(4, *shape))
    return module.eval()


def measure(name: str, exporter: str, size: int | None) -> dict[str, Any]:
    """One model through one exporter: what a row of the table says."""
    import numpy as np
    import onnx
    import torch

    from export import parity

    module, shape = build(name, size)
    images = torch.randn(BATCHES[0], *shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = module(images).numpy()
    scale = float(expected.std(axis=0).mean())
    varies = scale / float(expected.std())
    row: dict[str, Any] = {
        "parameters": sum(p.numel() for p in module.parameters()), "size": shape[1], "varies": varies,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        began = time.process_time()
        row["opset"], row["retried"] = write(exporter, module, path, shape)
        row["seconds"] = time.process_time() - began
        onnx.checker.check_model(path, full_check=True)
        operators = Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)
        row["nodes"] = sum(operators.values())
        row["bytes"] = sum(file.stat().st_size for file in Path(folder).iterdir())
        row["files"] = len(list(Path(folder).iterdir()))
        session = parity.session(path)
        errors = []
        for batch in BATCHES:
            logits = session.run(None, {session.get_inputs()[0].name: images[:batch].numpy()})[0]
            errors.append(float(np.abs(logits - expected[:batch]).max()) / scale)
    row["error"] = max(errors)
    if row["error"] > TOLERANCE:
        del session
        with torch.inference_mode():
            exact = module.double()(images.double()).numpy()
        row["rounding"] = float(np.abs(expected - exact).max()) / scale
    row["peak"] = peak_bytes()
    row["reason"] = verdict(row)
    return row


def write(exporter: str, module: nn.Module, path: Path, shape: tuple[int, int, int]) -> tuple[int, str]:
    """Export at the first opset that works; returns it, and why an earlier one did not."""
    from export.exporters import Request, write_onnx

    reasons = []
    for opset in OPSETS:
        try:
            write_onnx(exporter, module, path, Request(input_shape=shape, batch=None, opset=opset))
            return opset, "; ".join(reasons)
        except UserError as error:
            reasons.append(str(error))
    raise UserError("; ".join(reasons))


def verdict(row: dict[str, Any]) -> str:
    """Why the row does not count as exported; empty when it does."""
    if row["varies"] < VARIES:
        return f"the logits hardly vary with the image ({row['varies']:.1e} of their deviation): nothing is shown"
    if not row["error"] <= max(TOLERANCE, ROUNDING * row.get("rounding", 0.0)):
        return f"error {row['error']:.1e} of a logit's deviation between images"
    return ""


def work(answer: Connection, name: str, exporter: str, size: int | None, memory: int) -> None:
    """The process of one row."""
    die_with_parent()
    limit_memory(memory)
    try:
        row = measure(name, exporter, size)
    except Exception as error:  # a process border: any failure of a model is its row
        text = next((line for line in str(error).splitlines() if line.strip()), "")
        row = {"reason": f"{type(error).__name__}: {text}"[:300]}
    answer.send(row)


def ask(name: str, exporter: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run `work` in a process of its own, forked from one that has the libraries loaded."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=work, args=(sender, name, exporter, arguments.size, arguments.memory))
    began = int(time.time())
    process.start()
    sender.close()
    try:
        row = receiver.recv() if receiver.poll(arguments.timeout) else {"reason": "hung"}
    except EOFError:
        process.join()
        row = {"reason": f"the process ended with status {process.exitcode}"}
    process.kill()
    process.join()
    if row["reason"] == "hung":
        row["reason"] = f"not done within {arguments.timeout:.0f} s"
    return {"name": name, "exporter": exporter, "at": began, **row}


def journal(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows that are done; a line cut short by a kill is none."""
    rows = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows[row["name"], row["exporter"]] = row
    return rows


def report(rows: dict[tuple[str, str], dict[str, Any]]) -> str:
    """The rows as a page."""
    from importlib.metadata import version

    lines = [
        "# Survey: models through both exporters", "",
        "Made by `python benchmarks/survey.py`. Weights are random, norms included; each file is traced with a batch",
        f"of 2 and compared with PyTorch in ONNX Runtime at batches of {BATCHES[0]} and {BATCHES[1]}, at opset "
        f"{OPSETS[0]} and with a free",
        "batch. The error is the largest of a logit, in standard deviations of a logit between images; beyond "
        f"{TOLERANCE:g}",
        f"a file does not count, unless it is within {ROUNDING:g} times what PyTorch's own fp32 is from float64 on the "
        "same images.",
        "Seconds are the processor's, of the export alone.", "",
        f"torch {version('torch')}, torchvision {version('torchvision')}, timm {version('timm')}, "
        f"onnxruntime {ort_version()}, Python {platform.python_version()}, {os.cpu_count()} cores.", "",
        *totals(rows), "",
        "| model | parameters | pixels | exporter | result | nodes | file | error | CPU s |",
        "| --- | ---: | ---: | --- | --- | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    return "\n".join([*lines, *(line(row) for row in ordered(rows)), ""])


def ort_version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


def ordered(rows: dict[tuple[str, str], dict[str, Any]]) -> list[dict[str, Any]]:
    return [rows[key] for key in sorted(rows, key=lambda key: (not key[0].startswith("torchvision:"), key))]


def totals(rows: dict[tuple[str, str], dict[str, Any]]) -> Iterator[str]:
    """How many models each exporter, both and at least one took, by library."""
    yield "| library | models | dynamo | eager | both | at least one |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for library in ("torchvision", "timm"):
        known = {name for name, _ in rows if name.startswith(f"{library}:")}
        took = {e: {n for n in known if not rows.get((n, e), {"reason": "-"})["reason"]} for e in EXPORTERS}
        counts = [len(known), len(took["dynamo"]), len(took["eager"]), len(took["dynamo"] & took["eager"]),
                  len(took["dynamo"] | took["eager"])]  # fmt: skip
        yield f"| {library} | " + " | ".join(map(str, counts)) + " |"


def line(row: dict[str, Any]) -> str:
    name = row["name"].removeprefix("torchvision:")
    if "error" not in row:
        return f"| {name} | | | {row['exporter']} | {cell(row['reason'])} | | | | |"
    result = row["reason"] or ("ok" if row["opset"] == OPSETS[0] else f"ok at opset {row['opset']}")
    if not row["reason"] and "rounding" in row:
        result += f": PyTorch's own fp32 is {row['rounding']:.1e} from float64"
    return (
        f"| {name} | {row['parameters'] / 1e6:.1f} M | {row['size']} | {row['exporter']} | {cell(result)} | "
        f"{row['nodes']} | {row['bytes'] / 1e6:.1f} MB{' in 2 files' * (row['files'] > 1)} | {row['error']:.1e} | "
        f"{row['seconds']:.0f} |"
    )


def cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def parser() -> cli.Parser:
    made = cli.Parser(prog="python benchmarks/survey.py", description=__doc__)
    made.add_argument("--models", metavar="NAMES", help="with commas; torchvision's need no prefix (default: all)")
    made.add_argument("--size", type=cli.positive, metavar="PIXELS", help="default: 224, or what the model is made for")
    made.add_argument("--journal", type=Path, default=Path("artifacts/survey.jsonl"), metavar="FILE")
    made.add_argument("--report", type=Path, default=ROOT / "docs" / "survey.md", metavar="FILE")
    made.add_argument("--timeout", type=float, default=1800, metavar="SECONDS", help="for one model and exporter")
    made.add_argument("--memory", type=cli.positive, default=14_000_000_000, metavar="BYTES", help="default: 14 GB")
    made.add_argument("--again", action="store_true", help="try once more what failed")
    return made


def main() -> int:
    arguments = parser().parse_args()
    known = names()
    asked = [n if ":" in n else f"torchvision:{n}" for n in arguments.models.split(",")] if arguments.models else known
    wanted = [(cli.choose(name, known, "model"), exporter) for name in asked for exporter in EXPORTERS]
    rows = journal(arguments.journal)
    missing = [key for key in wanted if key not in rows or (arguments.again and rows[key]["reason"])]
    write_atomic(arguments.journal, "".join(json.dumps(row) + "\n" for row in rows.values()).encode())
    for number, key in enumerate(missing, 1):
        rows[key] = ask(*key, arguments)
        with arguments.journal.open("a") as file:
            file.write(json.dumps(rows[key]) + "\n")
        print(f"[{number}/{len(missing)}] {' '.join(key)}: {rows[key]['reason'] or 'ok'}", file=sys.stderr, flush=True)
    chosen = {key: rows[key] for key in wanted}
    write_atomic(arguments.report, report(chosen).encode())
    print(f"{sum(not row['reason'] for row in chosen.values())} of {len(chosen)} ok; {arguments.report}")
    return cli.OK if not any(row["reason"] for row in chosen.values()) else cli.FAILED


if __name__ == "__main__":
    cli.run(main)

"""Which engine takes which file: every precision and target, by both exporters, for the three models.

    python benchmarks/engines.py [--models simplecnn,resnet18] [--exporters dynamo] [--output docs/engines.md]

Each file is made from random weights at the model's own size, verified like every export, and given to TensorRT's
compiler for each architecture (TensorRT for RTX compiles without a GPU), to ONNX Runtime and to OpenVINO. A cell is
`ok`, or the engine's own reason in short. The table is printed and written as Markdown.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from checkpoints import random_checkpoint  # noqa: E402
from probing import ARCHITECTURES, RUNNERS, compiles, runs  # noqa: E402

from export.exporters import EXPORTERS  # noqa: E402
from export.pipeline import Job, export  # noqa: E402
from export.precision import CONVERTED, placements  # noqa: E402
from export.variant import Variant  # noqa: E402
from trainers import cli, models  # noqa: E402
from trainers.manifest import CheckFailed, UserError, write_atomic  # noqa: E402
from trainers.open import open_dataset  # noqa: E402

COLUMNS = ("model", "exporter", "precision", "target", "verified", *ARCHITECTURES, *RUNNERS)


def rows(folder: Path, names: list[str], exporters: list[str]) -> Iterator[tuple[str, ...]]:
    """One row a file."""
    for name in names:
        checkpoint = random_checkpoint(folder, name)
        data = open_dataset("synthetic", shape=checkpoint.input_shape, num_classes=len(checkpoint.classes))
        place = folder / name
        job = Job(checkpoint=checkpoint, source=place, folder=place, data=data, calibration_images=32, verify_images=64)
        for exporter in exporters:
            for precision in CONVERTED:
                for target in placements(precision):
                    variant = Variant(exporter=exporter, precision=precision, target=target)
                    print(f"{variant.name(name)} …", file=sys.stderr, flush=True)
                    yield name, exporter, precision, target or "any", *cells(job, variant)


def cells(job: Job, variant: Variant) -> tuple[str, ...]:
    """What each engine says to one variant."""
    try:
        made = export(job, variant)
    except (CheckFailed, UserError) as error:
        return (short(str(error)), *["-"] * (len(ARCHITECTURES) + len(RUNNERS)))
    path = job.folder / ("" if made.parity.passed else "failed") / made.file.path
    built = [compiles(path, architecture) for architecture in ARCHITECTURES]
    ran = [runs(path, runner, job.folder / "reference.safetensors") for runner in RUNNERS]
    return tuple(short(reason) for reason in (made.parity.reason, *built, *ran))


def short(reason: str) -> str:
    """An empty reason is `ok`."""
    return textwrap.shorten(reason.replace("|", "/"), 70, placeholder=" …") or "ok"


def markdown(made: list[tuple[str, ...]]) -> str:
    """The document."""
    head = (
        "# Which engine takes which file\n\nMade by `python benchmarks/engines.py`. Files of random weights, verified "
        "against PyTorch on 64 images (`verified`); TensorRT's columns are its compiler's verdict for that "
        "architecture, the engines' columns say whether the loaded file agrees with PyTorch on the reference images.\n"
    )
    lines = [COLUMNS, ["---"] * len(COLUMNS), *made]
    return head + "\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(models.names()))
    parser.add_argument("--exporters", default=",".join(EXPORTERS))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "engines.md")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = list(rows(Path(folder), given.models.split(","), given.exporters.split(",")))
    cli.table("engines", COLUMNS, made)
    write_atomic(given.output, markdown(made).encode())


if __name__ == "__main__":
    main()

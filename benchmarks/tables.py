"""The tables of docs/, from the records that exports of trained models have left.

    python -m export MODEL --all --verify-images all          for each model; also --rewrite all, --exporter both
    python -m export.sensitivity MODEL --images 256
    python -m export.gelu convnext --finetune-steps 20
    python benchmarks/tables.py                               writes docs/variants.md, docs/sensitivity.md, …

Nothing is computed here. What has no record is left out.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from export import choice, tables  # noqa: E402 (run as a script)
from export.artifact import Artifact, find  # noqa: E402
from export.search import tables as search_tables  # noqa: E402
from export.search.records import Sensitivity  # noqa: E402
from trainers import cli  # noqa: E402
from trainers.checkpoint import Checkpoint  # noqa: E402
from trainers.manifest import UserError, write_atomic  # noqa: E402

MODELS = ("simplecnn", "resnet18", "convnext")
MADE = "Made by `python benchmarks/tables.py` from the records of"


def variants(folder: Path) -> Iterator[str]:
    """Every variant of every model."""
    yield f"# Variants\n\n{MADE} `python -m export MODEL --all`; each table says on how many test images."
    for model in MODELS:
        found = _artifacts(folder / model)
        if found:
            data = Checkpoint.load(folder / model / "checkpoint.json").data
            yield f"## {model}\n\nTrained on {data.name}, {data.splits['train'].count:,} images."
            yield tables.markdown(found)


def exporters(folder: Path) -> Iterator[str]:
    """What the two exporters make of each model."""
    yield f"# Exporters compared\n\n{MADE} `python -m export MODEL --exporter both`."
    yield "How the choice is made: [exporters.md](exporters.md)."
    for model in MODELS:
        for record in _artifacts(folder / model):
            if record.choice is not None:
                title, columns, rows = choice.as_table(record.choice)
                yield f"## {model}\n\n{title}\n\n{cli.markdown(columns, rows)}"
                break


def sensitivity(folder: Path) -> Iterator[str]:
    """Each model's layers, ranked."""
    yield f"# Sensitivity to int8\n\n{MADE} `python -m export.sensitivity MODEL`."
    for model in MODELS:
        for path in sorted((folder / model / "sensitivity").glob("*.json"))[:1]:
            record = Sensitivity.load(path)
            columns, rows = search_tables.COLUMNS, search_tables.rows(record, len(record.layers))
            yield f"## {model}\n\n{_picture(path.with_suffix('.png'), f'sensitivity-{model}')}"
            yield f"{search_tables.title(record)}\n\n{cli.markdown(columns, rows)}"


def gelu(folder: Path) -> Iterator[str]:
    """The ConvNeXt's study."""
    path = folder / "convnext" / "gelu" / "gelu.md"
    if path.is_file():
        picture = _picture(path.with_suffix(".png"), "gelu-convnext")
        yield path.read_text().replace("![Error over x, and the loss of accuracy](gelu.png)", picture)


PAGES = {
    "variants.md": variants, "exporters-compared.md": exporters, "sensitivity.md": sensitivity, "gelu-study.md": gelu,
}  # fmt: skip


def _artifacts(folder: Path) -> list[Artifact]:
    """The current ones with a record."""
    found = [one.record for one in find(folder) if not one.stale] if folder.is_dir() else []
    return [record for record in found if record is not None]


def _picture(source: Path, name: str) -> str:
    """A picture, copied beside the pages."""
    place = ROOT / "docs" / "pictures" / f"{name}.png"
    place.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, place)
    return f"![{name}](pictures/{place.name})"


def main() -> int:
    parser = cli.Parser(prog="python benchmarks/tables.py", description=__doc__)
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"), metavar="DIR")
    parser.add_argument("--only", choices=PAGES, help="one page")
    arguments = parser.parse_args()
    folder = arguments.artifacts
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; export models first")
    for name, page in PAGES.items():
        parts = list(page(folder)) if arguments.only in (None, name) else []
        if len(parts) > (name != "gelu-study.md"):
            write_atomic(ROOT / "docs" / name, ("\n\n".join(part.strip() for part in parts) + "\n").encode())
            print(f"docs/{name}")
    return cli.OK


if __name__ == "__main__":
    cli.run(main)

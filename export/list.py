"""python -m export.list: what has been made, how close it is to PyTorch, and what it costs in accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trainers import cli
from trainers.manifest import UserError

if TYPE_CHECKING:
    from export.artifact import Found

EXAMPLES = """\
examples:
  python -m export.list                          every model under artifacts
  python -m export.list convnext
  python -m export.list convnext resnet18 --markdown > variants.md
"""


def parser() -> cli.Parser:
    made = cli.Parser(
        prog="python -m export.list", epilog=EXAMPLES, description="List the recorded artifacts of one or more models."
    )
    made.add_argument("models", metavar="MODEL", nargs="*", help="folders under --artifacts (default: all)")
    made.add_argument("--markdown", action="store_true", help="print a Markdown table for each model")
    cli.add_common(made)
    return made


def main() -> int:
    arguments = parser().parse_args()
    folders = [arguments.artifacts / name for name in arguments.models] or _models(arguments.artifacts)
    listed = [_current(folder) for folder in folders]
    if arguments.json:
        cli.emit({"artifacts": [one.record.to_document() for found in listed for one in found if one.record]})
        return cli.OK
    for found in listed:
        _show(found, arguments.markdown)
    return cli.OK


def _models(artifacts: Path) -> list[Path]:
    """The folders that hold a reference, which every export leaves. Raises UserError when there are none."""
    found = sorted(path.parent for path in artifacts.glob("*/reference.safetensors"))
    if not found:
        raise UserError(f"{artifacts} holds no artifacts; make some with: python -m export MODEL")
    return found


def _current(folder: Path) -> list[Found]:
    """The recorded artifacts of a folder, those of the current checkpoint only."""
    from export.artifact import find

    found = [one for one in find(folder) if not one.stale] if folder.is_dir() else []
    if not found:
        raise UserError(f"{folder} holds no artifacts; make them with: python -m export {folder.name}")
    return found


def _show(found: list[Found], markdown: bool) -> None:
    from export import tables

    records = [one.record for one in found if one.record is not None]
    print(tables.markdown(records)) if markdown else tables.show(records)


if __name__ == "__main__":
    cli.run(main)

"""python -m runtime backends: the engines that can run here, and why the others cannot."""

from __future__ import annotations

import argparse
from typing import Any

from trainers.cli import OK, emit

SUMMARY = "list the engines that can run here, and why others cannot"
EXAMPLES = """\
examples:
  python -m runtime backends
  python -m runtime backends --device cuda --json
"""
COLUMNS = ("backend", "version", "loads", "usable", "options")


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto",
                        help="the device they are to run on (default: the GPU where there is one)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the list as one JSON document")


def run(arguments: argparse.Namespace) -> int:
    """List every backend with its version, or the reason why it cannot run."""
    from runtime import backends
    from trainers.cli import table

    device = arguments.device if arguments.device != "auto" else ("cuda" if backends.gpu() else "cpu")
    rows = [_describe(name, device) for name in backends.names()]
    if arguments.json:
        emit({"schema": 1, "device": device, "backends": rows})
    else:
        table(f"Backends on {device}", COLUMNS, map(_cells, rows))
    return OK


def _describe(name: str, device: str) -> dict[str, Any]:
    from runtime import backends

    backend = backends.get(name)
    options = {key: list(values) for key, values in backend.options.items()}
    return {"name": name, "version": backends.version(backend) or None, "formats": list(backend.formats),
            "unusable": backend.unusable(device), "options": options}  # fmt: skip


def _cells(row: dict[str, Any]) -> list[str]:
    options = "; ".join(f"{key}={'|'.join(values)}" for key, values in row["options"].items())
    usable = f"no: {row['unusable']}" if row["unusable"] else "yes"
    return [row["name"], row["version"] or "-", ", ".join(row["formats"]), usable, options or "-"]

"""python -m runtime view: a model's graph in the browser."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from trainers.cli import OK
from trainers.manifest import UserError

SUMMARY = "show a model's graph in the browser with Netron, served on this machine only"
EXAMPLES = """\
examples:
  python -m runtime view convnext
  python -m runtime view artifacts/convnext/convnext-dynamo-exact-int8.onnx --port 8080
"""
HOST = "127.0.0.1"


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", nargs="?", metavar="ARTIFACT|MODEL",
                        help="a model file, or a model under DIR (default: the newest ONNX file there)")  # fmt: skip
    parser.add_argument("--port", type=port, metavar="N", help="default: one that is free")
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"), metavar="DIR",
                        help="where records and files lie (default: artifacts)")  # fmt: skip


def port(text: str) -> int:
    """argparse type: a TCP port."""
    value = int(text)
    if not 0 < value < 65536:
        raise argparse.ArgumentTypeError(f"{text} is not a port number")
    return value


port.__name__ = "port"


def run(arguments: argparse.Namespace) -> int:
    """Serve one file until Ctrl-C. Raises UserError when there is no such file or the port is taken."""
    path = pick(arguments.target, arguments.artifacts)
    import netron

    logging.basicConfig(level=logging.WARNING)  # Netron announces itself on the root logger; the line below does it
    try:
        host, number = netron.start(str(path), address=(HOST, arguments.port), browse=False)
    except OSError as error:
        raise UserError(f"port {arguments.port}: {error.strerror}; leave --port out to get a free one") from None
    print(f"{path} at http://{host}:{number} (Ctrl-C ends it)", flush=True)
    netron.wait()
    return OK


def pick(target: str | None, artifacts: Path) -> Path:
    """The file meant: one named by its path, a model's newest ONNX file, or the newest of all."""
    if target is not None and Path(target).is_file():
        return Path(target)
    if target is not None and Path(target).suffix in (".onnx", ".safetensors", ".xml"):
        raise UserError(f"{target}: no such file; list what there is with: ls {Path(target).parent}")
    paths = artifacts.glob("*/*.onnx") if target is None else (artifacts / target).glob("*.onnx")
    newest = max(paths, key=lambda path: path.stat().st_mtime_ns, default=None)
    if newest is None:
        where = artifacts / target if target else artifacts
        raise UserError(f"no ONNX file in {where}; make one with: python -m export {target or 'MODEL'}")
    return newest

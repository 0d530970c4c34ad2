"""python -m runtime view: artifacts in the browser."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from trainers.cli import OK, names_models
from trainers.manifest import UserError

SUMMARY = "show artifacts in the browser: an index, Netron, heat maps, the report; served on this machine only"
EXAMPLES = """\
examples:
  python -m runtime view                            all models: sizes, verdicts, links to Netron and to the report
  python -m runtime view convnext
  python -m runtime view artifacts/convnext/convnext-dynamo-exact-int8.onnx --port 8080
  python -m runtime view convnext-dynamo-exact-int8 --export int8.svg      the graph as a picture, by a Chromium
"""


def flags(parser: argparse.ArgumentParser) -> None:
    named = parser.add_argument("targets", nargs="*", metavar="ARTIFACT|MODEL",
                        help="model files, artifacts, or models under DIR (default: all)")  # fmt: skip
    names_models(named)
    parser.add_argument("--port", type=port, metavar="N", help="default: one that is free")
    parser.add_argument("--export", type=Path, metavar="FILE",
                        help="write Netron's picture of one artifact (.svg or .png) and end")  # fmt: skip
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
    """Serve until Ctrl-C, or write a picture. Raises UserError when there is nothing to see or the port is taken."""
    from runtime import saved
    from runtime.results import Report
    from runtime.site.entry import entries
    from runtime.site.server import HOST, Site, server

    if arguments.export is not None and arguments.export.suffix not in (".svg", ".png"):
        raise UserError(f"--export {arguments.export}: give a name that ends with .svg or .png")
    listed = entries([_named(name, arguments.artifacts) for name in arguments.targets], arguments.artifacts)
    if arguments.export is not None and len(listed) != 1:
        raise UserError(f"--export takes one artifact, not {len(listed)}; name it")
    newest = next(iter(saved.newest_first(arguments.artifacts / saved.FOLDER)), None)
    made = server(Site(listed, Report.find(newest) if newest else None), arguments.port)
    address = f"http://{HOST}:{made.server_address[1]}"
    with made:
        if arguments.export is not None:
            from runtime.site.picture import write

            write(made, f"{address}/netron/0/", arguments.export)
            print(f"picture: {arguments.export}")
            return OK
        what, where = (listed[0].files[0], "netron/0/") if len(listed) == 1 else (f"{len(listed)} artifacts", "")
        print(f"{what} at {address}/{where} (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):  # that is how it ends
            made.serve_forever()
    return OK


def _named(name: str, artifacts: Path) -> str:
    """An artifact's name as its path; anything else as it is."""
    paths = [path for path in artifacts.glob(f"*/{name}.*") if path.suffix in (".onnx", ".xml", ".safetensors")]
    return str(paths[0]) if len(paths) == 1 else name

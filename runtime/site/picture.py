"""Netron's picture of a graph, by a Chromium that nobody sees."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

from trainers.cli import progress
from trainers.manifest import UserError, atomic

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPEN_MS = 120_000
KEYS = {".png": "Control+Shift+e", ".svg": "Control+Alt+e"}  # Netron's


def browser() -> str:
    """The Chromium that is installed. Raises UserError where there is none, or nothing to drive it."""
    try:
        import playwright  # noqa: F401
    except ImportError:
        raise UserError("a picture is made by a browser that playwright drives; pip install playwright") from None
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise UserError("a picture is made by a Chromium, and there is none on the path; install it (Debian: apt "
                        "install chromium)")  # fmt: skip
    return found


def write(server: ThreadingHTTPServer, address: str, path: Path) -> None:
    """Open Netron at the address and let it export its graph; the file's suffix says as what."""
    executable = browser()
    from playwright.sync_api import Error, sync_playwright

    threading.Thread(target=server.serve_forever, daemon=True).start()
    with progress() as bars, _explained(Error), sync_playwright() as driver:
        bars.add_task("drawing", total=None)
        opened = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        tab = opened.new_page()
        tab.goto(address, timeout=OPEN_MS)
        tab.wait_for_selector("#canvas .node", timeout=OPEN_MS, state="attached")
        with tab.expect_download(timeout=OPEN_MS) as download:
            tab.keyboard.press(KEYS[path.suffix])
        with atomic(path) as temporary:
            download.value.save_as(temporary)
        opened.close()
    server.shutdown()


@contextlib.contextmanager
def _explained(errors: type[Exception]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        raise UserError(f"the browser could not draw it: {str(error).splitlines()[0]}; try again when the machine is "
                        "less busy, or look at it with: netron FILE") from None  # fmt: skip

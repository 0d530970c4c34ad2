"""The pictures of docs/looking.md, by a headless Chromium, of the newest report and the artifacts that it is about.

    python benchmarks/pictures.py --artifacts artifacts --graph convnext-dynamo-exact-int8

Writes report-light.png, report-phone.png, index.png, netron.png, heat-light.png and heat-dark.png; with --whole also
whole pages of the report in both schemes and widths, to look at before they are shown to anyone.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from runtime.site.picture import browser  # noqa: E402 (run as a script)
from trainers import cli  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WIDE, PHONE = {"width": 1280, "height": 1000}, {"width": 390, "height": 844}
TITLE = "{graph}, coloured by cost and error"  # of the link in the index
OPEN_MS = 120_000


@contextlib.contextmanager
def index(artifacts: Path) -> Iterator[str]:
    """The address of `python -m runtime view` while it serves."""
    command = [sys.executable, "-m", "runtime", "view", "--artifacts", str(artifacts)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().split(" at ")[1].split()[0]
        finally:
            server.send_signal(signal.SIGINT)


def tab(opened: Browser, address: str, scheme: str = "light", size: dict[str, int] = WIDE) -> Page:
    """A page that has been opened."""
    page = opened.new_page(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(address, timeout=OPEN_MS)
    return page


def report(opened: Browser, artifacts: Path, out: Path, whole: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        command = ["runtime", "report", "--html", str(path), "--artifacts", str(artifacts)]
        subprocess.run([sys.executable, "-m", *command], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        tab(opened, path.as_uri()).screenshot(path=out / "report-light.png")
        tab(opened, path.as_uri(), "dark", PHONE).screenshot(path=out / "report-phone.png")
        for scheme in ("light", "dark") if whole else ():
            for size in (WIDE, PHONE):
                page = tab(opened, path.as_uri(), scheme, size)
                page.screenshot(path=out / f"whole-{scheme}-{size['width']}.png", full_page=True)


def graphs(opened: Browser, address: str, graph: str, out: Path) -> None:
    tab(opened, address).screenshot(path=out / "index.png")
    for scheme in ("light", "dark"):
        page = tab(opened, address, scheme)
        page.get_by_role("link", name=TITLE.format(graph=graph), exact=True).click(timeout=OPEN_MS)
        page.wait_for_selector("#graph svg a", timeout=OPEN_MS)
        if scheme == "dark":
            page.get_by_label("quantization error").check()
        page.screenshot(path=out / f"heat-{scheme}.png")
    page = tab(opened, address)
    page.locator("tbody tr", has=page.get_by_text(graph, exact=True)).get_by_role("link", name="in Netron").click()
    page.wait_for_selector("#canvas .node", timeout=OPEN_MS, state="attached")
    page.wait_for_selector("body.default", timeout=OPEN_MS)  # Netron's own picture is gone
    page.screenshot(path=out / "netron.png")


def main() -> int:
    parser = cli.Parser(prog="python benchmarks/pictures.py", description=__doc__)
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"), metavar="DIR")
    parser.add_argument("--graph", default="convnext-dynamo-exact-int8", metavar="NAME", help="of the heat maps")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures", metavar="DIR")
    parser.add_argument("--whole", action="store_true", help="also whole pages of the report")
    arguments = parser.parse_args()
    executable, artifacts = browser(), arguments.artifacts.resolve()
    from playwright.sync_api import sync_playwright

    arguments.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        report(opened, artifacts, arguments.out, arguments.whole)
        with index(artifacts) as address:
            graphs(opened, address, arguments.graph, arguments.out)
        opened.close()
    return cli.OK


if __name__ == "__main__":
    cli.run(main)

"""The pages in a real browser: sorted, filtered, clicked, in light and dark, wide and narrow.

They skip where no Chromium is installed. FASTFORM_SCREENSHOTS names a folder that keeps their pictures.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import random_checkpoint
from commands import succeed
from test_page import GOLDEN, HOSTILE, renamed

from runtime.report import page
from runtime.results import Report
from runtime.site.picture import BROWSERS

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next((path for name in BROWSERS if (path := shutil.which(name))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
DRAWN_MS = 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("FASTFORM_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("pictures")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with fp32 and int8 files, a profile and a report."""
    folder = tmp_path_factory.mktemp("browser") / "artifacts"
    random_checkpoint(folder, "simplecnn")
    place = ("--artifacts", folder)
    succeed("export", "simplecnn", "--quantize", "--target", "cpu", "--verify-images", 64, "--calibration-images", 32,
            *place)  # fmt: skip
    succeed("runtime", "profile", "simplecnn-dynamo-exact-int8", "--backend", "onnxruntime", "--runs", 3, *place)
    succeed("runtime", "bench", "simplecnn", "--backends", "eager,onnxruntime", "--rounds", 3, "--processes", 1,
            "--seconds", "0.1", "--device", "cpu", *place)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def changes(artifacts: Path) -> Path:
    """What quantization changed in the graph, as a page."""
    path = artifacts / "changes.html"
    succeed("export.diff", "simplecnn-dynamo-exact-fp32", "simplecnn-dynamo-exact-int8", "--html", path, "--artifacts",
            artifacts)  # fmt: skip
    return path


@pytest.fixture(scope="module")
def address(artifacts: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "runtime", "view", "--artifacts", str(artifacts)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split(" at ")[1].split()[0]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 0


def opened(browser: playwright.Browser, address: str, **settings: object) -> playwright.Page:
    """A tab whose every error fails the test."""
    tab = browser.new_page(**{"viewport": WIDE, **settings})
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    tab.on("dialog", lambda dialog: errors.append(dialog.message))
    tab.on("request", lambda request: errors.append(request.url) if not is_local(request.url) else None)
    tab.goto(address)
    tab.errors = errors
    return tab


def is_local(url: str) -> bool:
    return url.startswith(("file:", "data:", "blob:", "http://127.0.0.1:"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    page.write(Report.load(GOLDEN), path)
    return path


def test_a_click_on_a_head_sorts_and_another_one_turns_it_round(browser: playwright.Browser, written: Path) -> None:
    tab = opened(browser, written.as_uri())
    head = tab.locator("table.sortable").first.get_by_role("button", name="p50 ms")
    column = tab.locator("table.sortable").first.locator("tbody td:nth-child(4)")
    head.click()
    rising = [float(value) for value in column.evaluate_all("cells => cells.map(cell => cell.dataset.value)")]
    assert rising == sorted(rising)
    assert len(rising) > 2
    head.press("Enter")  # by the keyboard as well
    falling = [float(value) for value in column.evaluate_all("cells => cells.map(cell => cell.dataset.value)")]
    assert falling == rising[::-1]
    assert tab.locator("th[aria-sort=descending]").count() == 1
    assert not tab.errors


def test_a_filter_leaves_what_matches_and_says_how_many(browser: playwright.Browser, written: Path) -> None:
    tab = opened(browser, written.as_uri())
    rows = tab.locator("table.sortable").first.locator("tbody tr")
    whole = rows.count()
    tab.get_by_placeholder("engine, variant, verdict").first.fill("onnxruntime KEEP")
    left = [row.inner_text() for row in rows.all() if row.is_visible()]
    assert 0 < len(left) < whole
    assert all("onnxruntime" in text and "KEEP" in text for text in left)
    assert f"{len(left)} of {whole} rows" in tab.get_by_role("status").first.inner_text()


def test_a_click_on_a_point_leads_to_its_row(browser: playwright.Browser, written: Path) -> None:
    tab = opened(browser, written.as_uri())
    point = tab.locator("svg a:has(circle)").last
    name = point.get_attribute("aria-label") or ""
    point.locator("circle").click()
    row = tab.locator("tr:target")
    assert row.count() == 1
    assert row.locator("td").nth(1).inner_text() in name
    row.locator("summary").click()
    assert "sha256" in row.inner_text()


LOOKS = [("light", WIDE), ("dark", WIDE), ("light", NARROW), ("dark", NARROW)]


@pytest.mark.parametrize(("scheme", "size"), LOOKS, ids=lambda value: str(value))
@pytest.mark.parametrize("what", ["report", "index", "heat", "diff"])
def test_a_page_fits_and_is_readable(
    browser: playwright.Browser, written: Path, address: str, changes: Path, pictures: Path, what: str, scheme: str,
    size: dict[str, int],
) -> None:  # fmt: skip
    place = {"report": written.as_uri(), "index": address, "heat": f"{address}heat/1", "diff": changes.as_uri()}[what]
    tab = opened(browser, place, viewport=size, color_scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing makes the page itself wider"
    contrast = tab.evaluate(CONTRAST)
    assert contrast, "there is text"
    assert min(value for value, _ in contrast) >= 4.5, f"WCAG 2.2, 1.4.3: contrast of text: {min(contrast)}"
    heights = "texts => texts.map(text => text.getBoundingClientRect().height)"
    letters = tab.locator("svg text").evaluate_all(heights)
    assert min(letters, default=12) >= 12, "letters in plots are as large on a phone"
    tab.screenshot(path=pictures / f"{what}-{scheme}-{size['width']}.png", full_page=True)
    assert not tab.errors


# Of every visible text its contrast with what is behind it, by WCAG's formula for relative luminance, and the text.
CONTRAST = """() => {
  const paint = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const light = colors => { for (const color of colors) { paint.fillStyle = color; paint.fillRect(0, 0, 1, 1); }
    const [r, g, b] = [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3).map(v => { v /= 255;
      return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = node => { const box = node instanceof SVGElement && node.parentNode.querySelector("rect:not([fill])");
    const found = box && !box.matches(".box") ? [getComputedStyle(box).fill] : [];
    for (let at = node; at; at = at.parentElement) found.unshift(getComputedStyle(at).backgroundColor);
    return found; };
  return [...document.querySelectorAll("h1, h2, h3, p, td, th, li, summary, .word, .graph div, .note, svg text")]
    .filter(node => node.textContent.trim() && node.getClientRects().length)
    .map(node => { const style = getComputedStyle(node), paper = light(behind(node));
                   const ink = light([node instanceof SVGElement ? style.fill : style.color]);
                   return [(Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05), node.textContent]; });
}"""


def test_everything_is_reached_by_the_keyboard(browser: playwright.Browser, written: Path) -> None:
    tab = opened(browser, written.as_uri())
    note = tab.locator("[data-says]").first
    at_rest = note.inner_text()
    tab_to(tab, "svg a")
    assert note.inner_text() != at_rest, "a point says its numbers"
    assert note.inner_text() == tab.locator("svg a:focus").get_attribute("aria-label")
    tab_to(tab, "[data-filter]")
    tab.keyboard.type("KEEP")
    assert " of " in tab.get_by_role("status").first.inner_text()
    tab_to(tab, ".rows th button")
    tab.keyboard.press("Space")
    assert tab.locator("th[aria-sort=ascending]").inner_text() == "verdict"
    tab_to(tab, "td summary")
    tab.keyboard.press("Enter")
    assert "sha256" in tab.locator("td details[open]").inner_text()
    tab_to(tab, ".strips a")
    tab.keyboard.press("Enter")
    assert tab.locator("tr:target").count() == 1
    assert not tab.errors


def tab_to(tab: playwright.Page, selector: str) -> None:
    """Press Tab until such an element has the focus."""
    for _ in range(300):
        tab.keyboard.press("Tab")
        if tab.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    pytest.fail(f"no {selector} is reached")


def test_a_click_on_samples_leads_to_their_row(browser: playwright.Browser, written: Path) -> None:
    tab = opened(browser, written.as_uri())
    tab.locator("svg a[href^='#part']").last.click()
    assert tab.locator("tr:target").count() == 1


def test_hostile_names_run_nothing(browser: playwright.Browser, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    report = Report.load(GOLDEN)
    page.write(renamed(report, "model"), path)
    tab = opened(browser, path.as_uri())
    scripts = tab.locator("script").count()
    for name in HOSTILE:
        page.write(renamed(report, name), path)
        tab.reload()
        assert tab.locator("script").count() == scripts, name
        assert tab.locator("[onload], [onerror]").count() == 0, name
        assert not tab.errors, name


def test_the_index_leads_to_netron_on_an_int8_file(browser: playwright.Browser, address: str, pictures: Path) -> None:
    tab = opened(browser, address)
    tab.screenshot(path=pictures / "index.png")
    assert tab.locator("tbody tr").count() == 3
    row = tab.locator("tbody tr", has=tab.get_by_text("simplecnn-dynamo-exact-int8", exact=True))
    assert "onnxruntime" in row.inner_text()
    row.get_by_role("link", name="in Netron").click()
    tab.wait_for_selector("#canvas .node", timeout=DRAWN_MS, state="attached")
    nodes = tab.locator("#canvas .node")  # Netron has switched eval off, so nothing is asked in its own world
    assert nodes.filter(has_text="QuantizeLinear").count() > 4
    assert nodes.filter(has_text="Conv").count()
    tab.screenshot(path=pictures / "netron.png")
    assert not tab.errors


def test_the_heat_map_shows_time_and_error(browser: playwright.Browser, address: str, pictures: Path) -> None:
    tab = opened(browser, address)
    tab.get_by_role("link", name="simplecnn-dynamo-exact-int8, coloured by cost and error").click()
    layers = tab.locator("#graph svg a")
    assert layers.count() == tab.locator("tbody tr").count() > 3
    fills = "nodes => nodes.map(node => getComputedStyle(node.querySelector('rect')).fill)"
    by_time = layers.evaluate_all(fills)
    assert len(set(by_time)) > 2, "not all layers take the same time"
    tab.screenshot(path=pictures / "heat.png", full_page=True)
    tab.get_by_label("quantization error").check()
    assert layers.evaluate_all(fills) != by_time
    layers.last.click()
    assert tab.locator("tr:target").count() == 1
    assert not tab.errors


def test_the_index_leads_to_the_report(browser: playwright.Browser, address: str) -> None:
    tab = opened(browser, address)
    tab.get_by_role("link", name="the newest report").click()
    text = tab.locator("body").inner_text()
    for part in ("Accuracy and parity", "Operators of the fastest ONNX file", "Layers of simplecnn-dynamo-exact-int8"):
        assert part in text
    assert not tab.errors


@pytest.mark.parametrize("host", ["example.org", "127.0.0.1.example.org", "127.0.0.1:1"])
def test_a_request_by_another_name_is_refused(address: str, host: str) -> None:
    request = urllib.request.Request(address, headers={"Host": host})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 403
    refused.value.close()


@pytest.mark.parametrize("path", ["netron/0/data/..%2f..%2fcheckpoint.json", "netron/99/", "netron/0/server.py", "x"])
def test_nothing_else_is_served(address: str, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{address}{path}")
    assert refused.value.code == 404
    refused.value.close()


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_netrons_picture_is_written_to_a_file(artifacts: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"graph.{suffix}"
    succeed("runtime", "view", "simplecnn-dynamo-exact-int8", "--export", path, "--artifacts", artifacts)
    assert path.read_bytes()[:4] == (b"<svg" if suffix == "svg" else b"\x89PNG")

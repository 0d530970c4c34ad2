"""The documents: where they point to is there, and the messages they quote are those that the commands print."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = {"operator torchvision::nms does not exist"}  # what torch says
PICTURE_BYTES = 200_000


def headings(text: str) -> set[str]:
    """The anchors that GitHub makes of them."""
    found = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_picture_is_there(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        path, _, anchor = link.partition("#")
        if path.startswith(("http:", "https:")):
            continue
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target.read_text()), link


def test_pictures_are_small() -> None:
    pictures = [*(ROOT / "docs" / "pictures").iterdir()]
    assert pictures
    assert [path.name for path in pictures if path.stat().st_size > PICTURE_BYTES] == []


def said() -> list[str]:
    """All texts in the packages' code; of an f-string the parts between what is put in."""
    files = [path for package in ("trainers", "export", "runtime") for path in (ROOT / package).rglob("*.py")]
    nodes = (node for path in files for node in ast.walk(ast.parse(path.read_text())))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def test_quoted_messages_are_what_is_printed() -> None:
    rows = re.findall(r"^\| `([^`]+)`", (ROOT / "docs" / "troubleshooting.md").read_text(), re.M)
    assert len(rows) > 12
    texts = said()
    for message in set(rows) - OTHERS:
        for part in (part.strip() for part in re.split(r"…|\w*\d\w*|: | (?=\()", message)):
            assert any(part in text for text in texts), f"nothing prints {part!r} of {message!r}"

"""Downloads against a real local HTTP server: whole, resumed, damaged, refused, cut."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from datasets import mnist_files

from trainers import data as sources
from trainers.download import Download, fetch, fetch_all
from trainers.manifest import UserError

CONTENT = bytes(range(256)) * 4000


@dataclass
class Server:
    """What the handler serves and what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cut: list[int] = field(default_factory=list)  # bytes after which each next answer breaks off
    ranges: bool = True
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range", "")
            state.asked.append(asked)
            content = state.files.get(self.path.lstrip("/"))
            if content is None:
                self.send_error(404)
                return
            start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked and state.ranges else 0
            self.send_response(206 if asked and state.ranges else 200)
            if asked and state.ranges:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            body = content[start:]
            self.wfile.write(body[: state.cut.pop(0)] if state.cut else body)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        state.url = f"http://127.0.0.1:{running.server_address[1]}/"
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield state
        running.shutdown()
        thread.join()


def described(server: Server, content: bytes = CONTENT, mirrors: tuple[str, ...] = ("file",)) -> Download:
    return Download(
        name="file", urls=tuple(server.url + mirror for mirror in mirrors), bytes=len(content),
        md5=hashlib.md5(content, usedforsecurity=False).hexdigest(),
    )  # fmt: skip


def test_whole(server: Server, tmp_path: Path) -> None:
    server.files["file"] = CONTENT
    fetch(described(server), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_goes_on(ranges: bool, server: Server, tmp_path: Path) -> None:
    server.files["file"], server.ranges = CONTENT, ranges
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    fetch(described(server), tmp_path / "file")
    assert server.asked == ["bytes=1000-"]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_cut_connection_is_resumed(server: Server, tmp_path: Path) -> None:
    server.files["file"], server.cut = CONTENT, [300_000, 5]
    fetch(described(server), tmp_path / "file")
    assert server.asked == ["bytes=0-", "bytes=300000-", "bytes=300005-"]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_connection_cut_each_time_keeps_what_came(server: Server, tmp_path: Path) -> None:
    server.files["file"], server.cut = CONTENT, [1000] * 3
    with pytest.raises(UserError, match=r"could not be downloaded.*--data PATH"):
        fetch(described(server), tmp_path / "file")
    assert (tmp_path / "file.part").read_bytes() == CONTENT[:3000]
    assert not (tmp_path / "file").exists()


def test_wrong_bytes_leave_nothing(server: Server, tmp_path: Path) -> None:
    server.files["file"] = CONTENT[:-1] + b"!"
    with pytest.raises(UserError, match=r"MD5 .* instead of"):
        fetch(described(server), tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_part_is_started_over(server: Server, tmp_path: Path) -> None:
    server.files["file"] = CONTENT
    (tmp_path / "file.part").write_bytes(b"damaged" + CONTENT[7:])
    fetch(described(server, mirrors=("file", "file")), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_the_second_mirror_serves(server: Server, tmp_path: Path) -> None:
    server.files["file"] = CONTENT
    fetch(described(server, mirrors=("gone", "file")), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert len(server.asked) == 2, "a mirror that answers 404 is asked once"


def test_not_found(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"HTTP 404.*get it by hand from .*--data PATH$"):
        fetch(described(server), tmp_path / "file")


def test_no_server(tmp_path: Path) -> None:
    nobody = Server(url="http://127.0.0.1:9/")
    with pytest.raises(UserError, match="refused"):
        fetch(described(nobody), tmp_path / "file")


def test_several_files(server: Server, tmp_path: Path) -> None:
    server.files = {name.rpartition("/")[2]: content for name, content in mnist_files().items()}
    downloads = [
        Download(name=name, urls=(server.url + name,), bytes=len(content), md5=hashlib.md5(content).hexdigest())
        for name, content in server.files.items()
    ]
    assert fetch_all("mnist", downloads, tmp_path) == tmp_path
    assert fetch_all("mnist", downloads, tmp_path, allowed=False) == tmp_path
    assert len(server.asked) == 4, "what is there is not asked for again"
    cut = tmp_path / downloads[1].name
    cut.write_bytes(b"cut")
    fetch_all("mnist", downloads, tmp_path)
    assert cut.read_bytes() == server.files[downloads[1].name], "what is not whole is"
    server.asked.clear()
    with ThreadPoolExecutor(2) as both:  # two programs with one cache
        for done in [both.submit(fetch_all, "mnist", downloads, tmp_path / "new") for _ in range(2)]:
            assert done.result() == tmp_path / "new"
    assert len(server.asked) == 4, "one waited for the other"
    (tmp_path / downloads[0].name).unlink()
    with pytest.raises(UserError, match="--data PATH"):
        fetch_all("mnist", downloads, tmp_path, allowed=False)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "tinyimagenet"])
def test_published_files_are_described(name: str) -> None:
    for download in sources.get(name).downloads:
        assert len(download.md5) == 32 and download.bytes > 4000
        assert all(url.startswith(("https://", "http://")) and url.endswith(download.name) for url in download.urls)

"""Serving the index, the report, heat maps and Netron on several artifacts, to this machine alone.

Netron's own server shows one file a process and answers whoever asks; its pages are served here instead, each with the
file that belongs to it. A request that does not name this machine as its host is refused: a page of somebody else's
cannot reach in by a name that it makes resolve to 127.0.0.1.
"""

from __future__ import annotations

import html as escaping
import mimetypes
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from export.inspect import html
from runtime.report import page
from runtime.results import Report
from runtime.site.entry import Entry
from trainers.manifest import CheckFailed, UserError

HOST = "127.0.0.1"
COLUMNS = ("model", "artifact", "size>", "top-1 drop>", "engine", "p50 ms>", "times faster>", "verdict")
TEMPLATE = Path(__file__).with_name("index.html")
STAMP = re.compile(r'<meta name="(version|date)" content="[^"]*">')
# Netron that calls itself this reports nothing; with the cookie it need not ask a service which country this is, to
# know whether to ask for consent to that.
UNRELEASED, CONSENT = "0.0.0", "consent=0; SameSite=Strict"


class Answer(NamedTuple):
    """What a request gets."""

    kind: str  # its content type
    body: bytes
    cookie: str = ""


class Site:
    """What there is to see. Pages are made when they are first asked for."""

    def __init__(self, entries: Sequence[Entry], report: Report | None) -> None:
        self.entries, self.report = entries, report
        self.heat = cache(self._heat)  # one that was made is kept

    def answer(self, path: str) -> Answer | None:
        """What lies at a path; None where nothing does."""
        routes: list[tuple[str, Callable[..., Answer | None]]] = [
            (r"/", self._index), (r"/report", self._report), (r"/heat/(\d+)", self.heat),
            (r"/netron/(\d+)/", self._netron), (r"/netron/(\d+)/data/([^/]+)", self._file),
            (r"/netron/\d+/([\w.-]+)", self._asset), (r"/(favicon\.ico)", self._asset),
        ]  # fmt: skip
        for pattern, made in routes:
            if matched := re.fullmatch(pattern, path):
                return made(*matched.groups())
        return None

    def _index(self) -> Answer:
        return _page(html.render(TEMPLATE.read_text(encoding="utf-8"), title="Artifacts", columns=COLUMNS,
                                 entries=self.entries, report=self.report is not None))  # fmt: skip

    def _report(self) -> Answer | None:
        if self.report is None:
            return None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "report.html"
            page.write(self.report, path)
            return _page(path.read_text(encoding="utf-8"))

    def _heat(self, number: str) -> Answer | None:
        entry = self._entry(number)
        if entry is None or not entry.has_heat:
            return None
        from export.inspect.heat import heat_of, rendered

        return _page(rendered(heat_of(entry.found, None)))

    def _netron(self, number: str) -> Answer | None:
        """Netron's page with the name of the file that it shall open."""
        entry = self._entry(number)
        if entry is None:
            return None
        name = escaping.escape(entry.files[0].name)
        now = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())  # one that thinks it is old shows nothing but that
        told = {"type": "Python", "version": UNRELEASED, "date": now, "file": f"data/{name}", "name": name,
                "identifier": name}  # fmt: skip
        metas = "".join(f'<meta name="{key}" content="{value}">' for key, value in told.items())
        text = STAMP.sub("", (self._assets / "index.html").read_text(encoding="utf-8"))
        text = text.replace("<head>", f"<head>{metas}", 1)
        return _page(text)._replace(cookie=CONSENT)

    def _file(self, number: str, name: str) -> Answer | None:
        """One of the artifact's own files; no other of its folder."""
        entry = self._entry(number)
        path = next((path for path in entry.files if path.name == unquote(name)), None) if entry else None
        return Answer("application/octet-stream", path.read_bytes()) if path is not None and path.is_file() else None

    def _asset(self, name: str) -> Answer | None:
        path = self._assets / name
        if not path.is_file() or path.suffix == ".py":
            return None
        return Answer(mimetypes.guess_type(name)[0] or "application/octet-stream", path.read_bytes())

    def _entry(self, number: str) -> Entry | None:
        return self.entries[int(number)] if int(number) < len(self.entries) else None

    @cached_property
    def _assets(self) -> Path:
        import netron

        return Path(netron.__file__).parent


def _page(text: str) -> Answer:
    return Answer("text/html; charset=utf-8", text.encode())


def server(site: Site, port: int | None) -> ThreadingHTTPServer:
    """A server that is bound and does not serve yet. Raises UserError where the port is taken."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(with_body=True)

        def do_HEAD(self) -> None:
            self._reply(with_body=False)

        def _reply(self, *, with_body: bool) -> None:
            if not self._is_ours():
                self.send_error(HTTPStatus.FORBIDDEN, "this is served to this machine only")
                return
            try:
                answer = site.answer(urlsplit(self.path).path)
            except (UserError, CheckFailed) as error:
                self.send_error(HTTPStatus.CONFLICT, explain=str(error))
                return
            if answer is None:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", answer.kind)
            self.send_header("Content-Length", str(len(answer.body)))
            self.send_header("X-Content-Type-Options", "nosniff")
            if answer.cookie:
                self.send_header("Set-Cookie", answer.cookie)
            self.end_headers()
            if with_body:
                self.wfile.write(answer.body)

        def _is_ours(self) -> bool:
            name, _, number = self.headers.get("Host", "").partition(":")
            return name in (HOST, "localhost") and number == str(made.server_port)

        def log_message(self, format: str, *args: object) -> None:
            """A line a request would hide the one that says where it is served."""

    try:
        made = ThreadingHTTPServer((HOST, port or 0), Handler)
    except OSError as error:
        raise UserError(f"port {port}: {error.strerror}; leave --port out to get a free one") from None
    made.daemon_threads = True
    return made

"""A server on this machine that means harm, for tests of what a URL may lead to."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from gpt_pretrain.config.schema import RemoteSettings


class Stranger(ThreadingHTTPServer):
    """A server that means harm.

    Attributes:
        files: The content of each path.
        redirects: The URL that a path is redirected to.
        answers: Functions that answer for a path in a way of their own.
        asked: The requested paths.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.answers: dict[str, Callable[[Answer], None]] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: clients hang up when they have had enough."""


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Stranger

    def do_GET(self) -> None:
        server, path = self.server, self.path.partition("?")[0]
        server.asked.append(self.path)
        if path in server.answers:
            server.answers[path](self)
        elif path in server.redirects:
            self.reply(302, headers={"Location": server.redirects[path]})
        elif path in server.files:
            self.reply_with_range(server.files[path])
        else:
            self.reply(404)

    do_HEAD = do_GET  # noqa: N815

    def reply_with_range(self, data: bytes) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if found is None:
            self.reply(200, data)
            return
        first, last = int(found[1]), int(found[2] or len(data) - 1)
        span = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
        self.reply(206, data[first : last + 1], headers=span)

    def reply(self, status: int, data: bytes = b"", *, headers: dict[str, str] | None = None, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data) if length is None else length)} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def redirect_without_end(self, target: str) -> int:
        """Redirect with a body as `reply_without_end` sends it, and return how many MB the client has taken."""
        return self.reply_without_end(status=302, headers={"Location": target})

    def reply_without_end(self, *, status: int = 200, headers: dict[str, str] | None = None) -> int:
        """Send 100 MB in pieces without saying how many follow, or until the client has had enough; return how many MB it took."""
        self.send_response(status)
        for name, value in ({"Transfer-Encoding": "chunked"} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        for number in range(100):
            try:
                self.wfile.write(b"100000\r\n" + bytes(0x100000) + b"\r\n")
            except OSError:
                return number
        self.wfile.write(b"0\r\n\r\n")
        return 100

    def log_message(self, *arguments: object) -> None:
        pass


def taken(sent: Sequence[int], *, answers: int) -> int:
    """Return how many MB clients have taken of some answers without end, when the server knows of all of them."""
    end = time.monotonic() + 30
    while len(sent) < answers:
        assert time.monotonic() < end, f"{len(sent)} of {answers} answers have ended"
        time.sleep(0.01)
    return sum(sent)


def remote_settings(**changes: Any) -> RemoteSettings:
    return RemoteSettings(**({"cache_bytes": 10**8, "timeout": 5.0, "threads": 2, "retries": 0} | changes))

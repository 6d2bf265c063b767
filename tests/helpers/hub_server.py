"""A local server that speaks the protocol of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import re
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves the files of models, and can damage or interrupt its answers.

    Attributes:
        files: The served files, by "model/file".
        requests: The method, path and Range header of each request.
        cut_after: Bytes after which each of the next `cuts` answers is interrupted.
        stall: Keep an interrupted connection open, without sending anything.
        spoil: Send one wrong byte.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.cut_after, self.cuts, self.stall, self.spoil = 0, 0, False, False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def asked_for(self, method: str = "GET") -> list[str]:
        return [path.rsplit("/", 1)[-1] for asked, path, _ in self.requests if asked == method and "/resolve/" in path]

    def ranges(self) -> list[str]:
        return [start for _, _, start in self.requests if start is not None]


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        hub, start = self.server, self.headers.get("Range")
        hub.requests.append((self.command, self.path, start))
        model, _, file = self.path.lstrip("/").partition("/resolve/main/")
        data = hub.files.get(f"{model}/{file}")
        if data is None:
            known = any(name.startswith(f"{model}/") for name in hub.files)
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        checksum = hashlib.sha256(data).hexdigest() if len(data) > 10_000 else hashlib.sha1(data).hexdigest()
        first = int(re.findall(r"bytes=(\d+)-", start)[0]) if start else 0
        self.send_response(206 if start else 200)
        for name, value in {
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{checksum}"',
            "X-Linked-Size": str(len(data)),
            "Content-Length": str(len(data) - first),
            "Accept-Ranges": "bytes",
            **({"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"} if start else {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if not body:
            return
        if hub.spoil:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if hub.cuts and len(data) > 10_000:
            hub.cuts -= 1
            self.wfile.write(data[first : first + hub.cut_after])
            self.wfile.flush()
            while hub.stall:
                time.sleep(0.02)
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(data[first:])

    def log_message(self, *arguments: object) -> None:
        pass

    def log_error(self, *arguments: object) -> None:
        pass

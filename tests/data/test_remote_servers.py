"""Shards on servers on this machine: S3 behind a proxy that fails, and plain HTTP."""

import base64
import http.client
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest

from gpt_pretrain.data.remote import remote_cache as module
from gpt_pretrain.errors import UserError
from tests.helpers.remote_corpora import data_of, rows_of
from tests.helpers.training_runs import Train, checkpoint, same_weights

pytestmark = pytest.mark.usefixtures("fast_retries")


class Proxy(BaseHTTPRequestHandler):
    """Forward requests to another server; some requests for shards get an error, a delay or a truncated body."""

    target: tuple[str, int]
    failures: Iterator[str]
    requests = 0

    def do_GET(self) -> None:
        self._forward()

    def do_HEAD(self) -> None:
        self._forward()

    def _forward(self) -> None:
        failure = next(Proxy.failures) if self.command == "GET" and ".bin" in self.path else ""
        Proxy.requests += bool(failure)
        if failure == "error":
            self.send_error(500)
            return
        if failure == "slow":
            time.sleep(1.5)
        line = http.client.HTTPConnection(*Proxy.target)
        line.request(self.command, self.path, headers=dict(self.headers))
        answer = line.getresponse()
        body = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if failure == "cut" else body)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture(scope="module")
def s3_server(corpus: Path) -> Iterator[tuple[str, int]]:
    """An S3 server on this machine that holds the corpus."""
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b"), ("AWS_DEFAULT_REGION", "us-east-1")):
            patch.setenv(name, value)
        server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        s3 = fsspec.filesystem("s3", skip_instance_cache=True, endpoint_url=f"http://{host}:{port}")
        s3.mkdir("corpora")
        s3.put(str(corpus), "corpora/tales", recursive=True)
        yield host, port
        server.stop()


@pytest.fixture
def bucket(s3_server: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The corpus in S3, behind a proxy that makes some of the requests fail."""
    Proxy.target, Proxy.requests = s3_server, 0
    Proxy.failures = itertools.cycle(["", "error", "", "", "cut", "", "", ""])
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_port}")
    yield "s3://corpora/tales"
    proxy.shutdown()
    proxy.server_close()


@pytest.mark.slow
@pytest.mark.parametrize("cache_bytes", [10**8, 1_000_000])
def test_training_from_s3_equals_training_from_local_files(
    train: Train, tmp_path: Path, corpus: Path, bucket: str, cache_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WHOLE_FILES_LIMIT", 0.8 if cache_bytes > 10**7 else 0.0)
    overrides = ["data=shards", "data.batch_size=16", "data.stride=32", "trainer.max_steps=12", "trainer.limit_val_batches=3",
             "callbacks=minimal", "logger=none", "data.respect_documents=true"]  # fmt: skip
    remote = [
        f"data.cache_dir='{tmp_path / 'cache'}'",
        f"data.remote.cache_bytes={cache_bytes}",
        "data.remote.timeout=1",
        "data.remote.retries=20",
    ]
    train(*overrides, f"data.path='{corpus}'", run_dir=tmp_path / "local")
    Proxy.failures = itertools.cycle(["", "error", "", "", "cut", "", "slow", "", "", ""])
    train(*overrides, f"data.path={bucket}", *remote, run_dir=tmp_path / "remote")
    assert Proxy.requests >= 10
    a, b = checkpoint(tmp_path / "local"), checkpoint(tmp_path / "remote")
    assert a["train_losses"] == b["train_losses"]
    assert same_weights(a, b)


Refuse = Callable[[BaseHTTPRequestHandler], int | None]


@contextmanager
def served(folder: Path, *, refuse: Refuse) -> Iterator[str]:
    """Serve the files of a folder without listing it, and yield the address of the server.

    Args:
        refuse: Returns the status of an answer without content, or None to answer with the file.
    """

    class Plain(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(with_body=True)

        def do_HEAD(self) -> None:
            self._send(with_body=False)

        def _send(self, *, with_body: bool) -> None:
            file = folder / self.path.lstrip("/")
            if (refused := refuse(self)) is not None or not file.is_file():
                self.send_error(refused or 404)
                return
            data, span = file.read_bytes(), self.headers.get("Range")
            status = 200
            if span is not None:
                first, last = (int(end) for end in span.removeprefix("bytes=").split("-"))
                data, status = data[first : last + 1], 206
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Accept-Ranges", "bytes")
            if status == 206:
                self.send_header("Content-Range", f"bytes {first}-{last}/{file.stat().st_size}")
            self.end_headers()
            if with_body:
                self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Plain)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_corpus_behind_http_needs_no_listing(tmp_path: Path, corpus: Path, expected: list[list[int]]) -> None:
    is_busy = itertools.chain([True] * 3, itertools.repeat(False))
    with served(corpus, refuse=lambda request: 429 if next(is_busy) else None) as address:
        assert rows_of(data_of(tmp_path, f"http://{address}")) == expected


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("named", ["auto", "gpt_pretrain", "nanogpt"])
def test_a_refused_corpus_is_not_called_missing(tmp_path: Path, corpus: Path, status: int, named: str) -> None:
    with served(corpus, refuse=lambda request: status) as address, pytest.raises(UserError) as refused:
        data_of(tmp_path, f"http://{address}", retries=0, format=named)
    assert f"server refuses access ({status}). Type what it asks for: a user in the URL," in str(refused.value)
    assert "use data=text" not in str(refused.value)


def test_a_server_that_has_answered_is_asked_again_if_it_refuses(tmp_path: Path, corpus: Path, expected: list[list[int]]) -> None:
    numbers = itertools.count()
    with served(corpus, refuse=lambda request: 403 if request.headers["Range"] and next(numbers) == 1 else None) as address:
        assert rows_of(data_of(tmp_path, f"http://{address}")) == expected
    assert next(numbers) > 2


def test_a_user_or_a_header_opens_a_refused_corpus(tmp_path: Path, corpus: Path, expected: list[list[int]]) -> None:
    keys = ["Bearer KEY", f"Basic {base64.b64encode(b'me:pass').decode()}"]
    with served(corpus, refuse=lambda request: None if request.headers["Authorization"] in keys else 401) as address:
        assert rows_of(data_of(tmp_path / "user", f"http://me:pass@{address}")) == expected
        options = {"headers": {"Authorization": "Bearer KEY"}}
        assert rows_of(data_of(tmp_path / "header", f"http://{address}", options=options)) == expected

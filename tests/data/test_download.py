import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gpt_pretrain.data.remote.download import download
from gpt_pretrain.errors import UserError

GOOD = b"The real text.\n" * 5000
SHA256 = hashlib.sha256(GOOD).hexdigest()


class Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.hits += 1  # type: ignore[attr-defined]
        if self.path == "/missing.txt":
            self.send_error(404)
            return
        body = b"Some other text.\n" if self.path == "/wrong.txt" else GOOD
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path == "/truncated.txt" else body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.hits = 0  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def url(server: ThreadingHTTPServer, name: str) -> str:
    return f"http://127.0.0.1:{server.server_port}/{name}"


def test_a_file_is_downloaded_only_once(server: ThreadingHTTPServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert download(url(server, "good.txt"), sha256=SHA256, cache_dir=tmp_path).read_bytes() == GOOD
    assert server.hits == 1  # type: ignore[attr-defined]
    assert "100%" in capfd.readouterr().err, "a progress bar is shown"


def test_a_damaged_copy_is_downloaded_again(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    download(url(server, "good.txt"), sha256=SHA256, cache_dir=tmp_path).write_bytes(b"damaged")
    assert download(url(server, "good.txt"), sha256=SHA256, cache_dir=tmp_path).read_bytes() == GOOD


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong.txt", "sent unexpected content: its SHA-256 is not"),
        ("truncated.txt", "could not be downloaded|sent unexpected content"),
        ("missing.txt", r"could not be downloaded: the server answers 404 Not Found\. Check data\.url="),
    ],
)
def test_a_failed_download_is_reported_with_a_remedy_and_leaves_no_file(
    server: ThreadingHTTPServer, tmp_path: Path, name: str, message: str
) -> None:
    with pytest.raises(UserError, match=f"(?s)({message}).*data.path="):
        download(url(server, name), sha256=SHA256, cache_dir=tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["CACHEDIR.TAG"]


def test_a_missing_network_is_reported_with_a_remedy(tmp_path: Path, server: ThreadingHTTPServer) -> None:
    address = url(server, "good.txt").replace(str(server.server_port), "9")  # nothing listens there
    with pytest.raises(UserError, match=r"could not be downloaded .*data\.path=FILE"):
        download(address, sha256=SHA256, cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://[x/a.txt", r"data\.url=http://\[x/a\.txt cannot be read as a URL \(Invalid IPv6 URL\)\. Check it\."),
        ("http://127.0.0.1:many/a.txt", r"cannot be read as a URL \(Port could not be cast .*\)\. Check it\."),
        ("http://a..b/a.txt", r"could not be downloaded \(.*label.*\)\. Check data\.url=, or use data=sample\."),
        ("http:///a.txt", r"could not be downloaded \(.*No host supplied\)\. Check data\.url=, or use data=sample\."),
    ],
    ids=["brackets", "port", "labels", "host"],
)
def test_a_url_that_nothing_can_open_is_named_as_such(tmp_path: Path, address: str, message: str) -> None:
    for sha256 in (None, SHA256):
        with pytest.raises(UserError, match=message):
            download(address, sha256=sha256, cache_dir=tmp_path)

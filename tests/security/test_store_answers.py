"""Answers of cloud stores and of the hub's file system that mean harm."""

from __future__ import annotations

from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from huggingface_hub import constants, get_session
from huggingface_hub.utils import http_backoff

from gpt_pretrain.data.remote import hub_session, remote_files, web
from gpt_pretrain.data.remote.http_session import BoundedResponse
from gpt_pretrain.data.remote.remote_files import RemoteFiles
from gpt_pretrain.errors import UserError
from tests.helpers.hostile_server import Answer, Stranger, remote_settings


@pytest.mark.parametrize("asks_for", ["a part of a shard", "a list"])
def test_an_answer_of_a_store_without_end_is_cut_off(stranger: Stranger, asks_for: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    monkeypatch.setattr(web, "MAX_ANSWER_BYTES", 2_000_000)
    stated = {"ETag": '"x"', "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}
    sent = []

    def endless(answer: Answer) -> None:
        if answer.command == "HEAD":
            answer.reply(200, length=1000, headers=stated)
        else:
            answer.reply_without_end(headers=stated)
            sent.append(True)

    stranger.answers = {"/bucket/corp/x.bin": endless, "/bucket": endless, "/bucket/": endless}
    files = RemoteFiles("s3://bucket/corp", remote_settings(options={"endpoint_url": stranger.url, "anon": True}))
    with pytest.raises(UserError, match=r"ignores the Range header|sends more than"):
        files.names() if asks_for == "a list" else files._retry(lambda: files._read_range("x.bin", 0, 999), "x.bin")


@pytest.mark.parametrize("asked", [{"range": "bytes=0-999"}, {}], ids=["a part of a shard", "a list"])
def test_an_answer_of_the_hub_s_file_system_without_end_is_cut_off(
    stranger: Stranger, asked: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "MAX_ANSWER_BYTES", 2_000_000)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    sent: list[int] = []
    stranger.answers = {"/x.bin": lambda answer: sent.append(answer.reply_without_end())}
    stranger.files["/y.bin"] = b"0123456789"
    files = RemoteFiles("hf://datasets/some/corpus", remote_settings())
    with pytest.raises(UserError, match=r"ignores the Range header|sends more than"):
        files._retry(lambda: http_backoff("GET", f"{stranger.url}/x.bin", headers=asked).content, "x.bin")
    assert (
        files._retry(lambda: http_backoff("GET", f"{stranger.url}/y.bin", headers={"range": "bytes=2-4"}).content, "y.bin")
        == b"234"
    )
    assert len(get_session().get(f"{stranger.url}/x.bin").content) > 2_000_000, "elsewhere, the client stays as it is"


def test_a_list_of_the_hub_without_a_last_page_is_cut_off(stranger: Stranger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_session, "MAX_LIST_BYTES", 250_000)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    stranger.files["/page"] = bytes(100_000)
    files = RemoteFiles("hf://datasets/some/corpus", remote_settings())

    def read_pages(count: int, headers: dict[str, str]) -> int:
        return sum(len(http_backoff("GET", f"{stranger.url}/page", headers=headers).content) for _ in range(count))

    assert files._retry(lambda: read_pages(2, {}), "") == 200_000
    part = {"range": "bytes=0-99999"}
    assert files._retry(lambda: read_pages(5, part) + read_pages(2, {}), "") == 700_000, "parts of a shard are no list"
    with pytest.raises(UserError, match="the hub's list of files has more than 250,000 bytes"):
        files._retry(lambda: read_pages(5, {}), "")


def test_google_s_file_system_gets_a_client_with_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its package is not among those that are installed for the tests."""
    given: dict[str, Any] = {}

    class Recorded(MemoryFileSystem):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            super().__init__()
            given.update(options)

    monkeypatch.setattr(remote_files.fsspec, "get_filesystem_class", lambda _: Recorded)
    monkeypatch.setattr(remote_files.fsspec.core, "url_to_fs", lambda url, **options: (Recorded(**options), url))
    remote_files.open_file_system("gs://bucket/corpus", {"session_kwargs": {"trust_env": True, "response_class": None}})
    assert given["session_kwargs"]["response_class"] is BoundedResponse
    assert given["session_kwargs"]["trust_env"]

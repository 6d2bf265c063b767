"""Fixtures of the tests with a corpus behind a URL."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt_pretrain.data.remote import remote_cache as module
from gpt_pretrain.data.remote import remote_files
from gpt_pretrain.data.remote.fetching import FetcherThread, stop_fetching
from tests.helpers.made_shards import write_shards
from tests.helpers.remote_corpora import TRAIN, VAL, data_of, rows_of


@pytest.fixture
def fast_retries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use small blocks and short pauses, and check that no fetcher thread outlives the test."""
    monkeypatch.setattr(remote_files, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(module, "BLOCK", 4096)
    yield
    stop_fetching()
    deadline = time.monotonic() + 30
    while left := [thread.name for thread in threading.enumerate() if isinstance(thread, FetcherThread)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a corpus in several shards."""
    return write_shards(tmp_path_factory.mktemp("remote") / "corpus", train=TRAIN, val=VAL, shard_tokens=5000)


@pytest.fixture(scope="module")
def expected(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    """Return the rows of an epoch when they are read from local files."""
    return rows_of(data_of(tmp_path_factory.mktemp("local"), str(corpus)))

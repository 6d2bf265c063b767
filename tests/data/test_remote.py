"""Shards behind a URL and their cache: a file system that fails, and several processes."""

import errno
import hashlib
import itertools
import multiprocessing
import os
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import fsspec
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem

from gpt_pretrain.data.remote import fetching as fetching_module
from gpt_pretrain.data.remote import remote_cache as module
from gpt_pretrain.data.remote import remote_files
from gpt_pretrain.data.remote.disk_cache import DiskCache
from gpt_pretrain.data.remote.fetching import FetcherThread, StoppedError
from gpt_pretrain.data.remote.remote_cache import CachedFiles
from gpt_pretrain.data.remote.remote_files import RemoteFiles
from gpt_pretrain.data.sampler import DistributedBatchSampler, PrefetchingSampler
from gpt_pretrain.data.shards.formats import open_corpus
from gpt_pretrain.errors import UserError
from gpt_pretrain.system import urls
from gpt_pretrain.system.signing import SIGNATURE_BYTES
from tests.helpers.made_shards import stream, write_llmc, write_nanogpt
from tests.helpers.remote_corpora import TRAIN, data_of, remote_settings, rows_of
from tests.helpers.waiting import wait_until

pytestmark = pytest.mark.usefixtures("fast_retries")


class FailingFileSystem(LocalFileSystem):
    """A local disk on which each read fails in the way that `failures` says."""

    protocol = "failing"
    failures: Iterator[str] = itertools.repeat("")
    reads = 0

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        FailingFileSystem.reads += 1
        failure = next(FailingFileSystem.failures)
        if failure == "error":
            raise ConnectionResetError("connection lost")
        if failure == "refused":
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        if failure == "slow":
            time.sleep(1.0)
        if failure == "forbidden":
            raise PermissionError("no access")
        data: bytes = super().cat_file(path, start=start, end=end, **kwargs)
        return data[:-1] if failure == "short" else b"\0" * len(data) if failure == "wrong" else data


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> type[FailingFileSystem]:
    fsspec.register_implementation("failing", FailingFileSystem, clobber=True)
    monkeypatch.setattr(urls, "SCHEMES", (*urls.SCHEMES, "failing"))
    monkeypatch.setattr(FailingFileSystem, "failures", itertools.repeat(""))
    monkeypatch.setattr(FailingFileSystem, "reads", 0)
    return FailingFileSystem


@pytest.mark.parametrize("cache_bytes", [10**8, 40_000])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_equals_one_from_local_files(
    tmp_path: Path, corpus: Path, expected: list[list[int]], cache_bytes: int, num_workers: int
) -> None:
    assert rows_of(data_of(tmp_path, f"file://{corpus}", cache_bytes=cache_bytes, num_workers=num_workers)) == expected
    size = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    assert size <= cache_bytes * 1.2


def test_errors_slow_answers_and_short_answers_are_retried(
    tmp_path: Path, corpus: Path, expected: list[list[int]], failing: type[FailingFileSystem]
) -> None:
    data = data_of(tmp_path, f"failing://{corpus}", cache_bytes=40_000, timeout=0.3, retries=50)
    failing.failures = itertools.chain(
        ["error", "error", "short", "slow", ""] * 4, itertools.cycle(["", "", "error", "", "short"])
    )
    assert rows_of(data) == expected


def test_a_read_that_keeps_failing_is_reported(tmp_path: Path, corpus: Path, failing: type[FailingFileSystem]) -> None:
    failing.failures = itertools.repeat("forbidden")
    with pytest.raises(UserError, match=r"may not be read: no access"):
        RemoteFiles(f"failing://{corpus}", remote_settings()).read("train-00000.bin", 0, 10)
    assert failing.reads == 1, "a denied read is not retried"
    failing.failures = itertools.repeat("slow")
    with pytest.raises(UserError, match=r"no answer within 0\.1 seconds"):
        RemoteFiles(f"failing://{corpus}", remote_settings(timeout=0.1, retries=0)).read("train-00000.bin", 0, 10)
    failing.failures = itertools.repeat("")
    data = data_of(tmp_path, f"failing://{corpus}", cache_bytes=40_000, retries=2)
    failing.failures = itertools.repeat("error")
    with pytest.raises(
        UserError, match=r"corpus/train-[0-9]+\.bin: connection lost\. All 3 attempts failed \(data\.remote\.retries=2\)"
    ):
        rows_of(data)


@pytest.mark.parametrize("files", ["manifest.json", ""])
def test_a_server_that_was_never_reached_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, files: str) -> None:
    def look_up(*_arguments: object, **_options: object) -> NoReturn:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(remote_files, "FIRST_PAUSE", 60.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    refusing = RemoteFiles(f"http://127.0.0.1:{port}/corpus", remote_settings(retries=6, timeout=5.0))
    with pytest.raises(UserError, match=r"/corpus: nothing answers at this address \(connection refused\)\. Check the URL"):
        refusing.size(files) if files else refusing.names()
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    unknown = RemoteFiles("http://corpus.example/corpus", remote_settings(retries=6, timeout=5.0))
    with pytest.raises(UserError, match=r"the name of the server has no address here \(Temporary failure in name resolution\)"):
        unknown.size(files) if files else unknown.names()


def test_a_server_that_has_answered_is_waited_for(failing: type[FailingFileSystem], corpus: Path) -> None:
    failing.failures = itertools.chain(["", "refused", "refused"], itertools.repeat(""))
    files = RemoteFiles(f"failing://{corpus}", remote_settings(retries=3))
    first = files.read("train-00000.bin", 0, 10)
    assert files.read("train-00000.bin", 0, 10) == first
    assert failing.reads == 4


def test_pauses_between_attempts_grow(
    tmp_path: Path, corpus: Path, failing: type[FailingFileSystem], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(remote_files, "FIRST_PAUSE", 0.5)
    monkeypatch.setattr(fetching_module.time, "sleep", pauses.append)
    failing.failures = itertools.repeat("error")
    with pytest.raises(UserError):
        RemoteFiles(f"failing://{corpus}", remote_settings(retries=8)).read("train-00000.bin", 0, 10)
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_whole_files_replace_their_blocks_if_they_fit(tmp_path: Path, corpus: Path, failing: type[FailingFileSystem]) -> None:
    data = data_of(tmp_path, f"failing://{corpus}")
    assert all(len(batch) for batch in data.train_dataloader())
    (folder,) = tmp_path.rglob("whole")
    shards = sorted(file.name for file in corpus.glob("*.bin"))
    wait_until(lambda: sorted(file.name for file in folder.glob("*.bin")) == shards)
    assert all((folder / name).read_bytes() == (corpus / name).read_bytes() for name in shards)
    before = failing.reads
    again = data_of(tmp_path, f"failing://{corpus}")
    opened = failing.reads
    rows_of(again)
    assert failing.reads == opened, "a warm cache needs no requests"
    assert opened - before < 20, "only the manifest and a sample of both sets are read"


def test_a_whole_file_with_a_wrong_checksum_is_fetched_again(
    tmp_path: Path, corpus: Path, failing: type[FailingFileSystem]
) -> None:
    files = RemoteFiles(f"failing://{corpus}", remote_settings())
    checksums = {"train-00000.bin": hashlib.sha256((corpus / "train-00000.bin").read_bytes()).hexdigest()}
    cached = CachedFiles(files, key="", cache_dir=tmp_path, checksums=checksums)
    failing.failures = itertools.chain(["wrong"], itertools.repeat(""))
    cached.fetch_whole_files()
    assert len(list(tmp_path.rglob("*.bin"))) == 1, "the second attempt succeeds"


def test_a_shard_that_is_damaged_at_its_source_is_reported(
    tmp_path: Path, corpus: Path, failing: type[FailingFileSystem]
) -> None:
    data = data_of(tmp_path, f"failing://{corpus}")
    failing.failures = itertools.repeat("wrong")
    with pytest.raises(UserError, match=r"train-0000\d\.bin is damaged: its checksum differs"):
        while True:
            rows_of(data)


def test_a_damaged_block_in_the_cache_is_fetched_again(tmp_path: Path, corpus: Path) -> None:
    def cached() -> CachedFiles:
        return CachedFiles(
            RemoteFiles(f"file://{corpus}", remote_settings(cache_bytes=10_000_000)),
            key="",
            cache_dir=tmp_path,
            checksums={"train-00000.bin": None},
        )

    data = (corpus / "train-00000.bin").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WHOLE_FILES_LIMIT", 0.0)
        assert cached().read("train-00000.bin", 4000, 200) == data[4000:4200]
        blocks = sorted(tmp_path.rglob("0000000?"))
        assert len(blocks) == 2
        blocks[0].write_bytes(b"cut")
        assert cached().read("train-00000.bin", 4000, 200) == data[4000:4200]
        assert len(blocks[0].read_bytes()) == 4096 + SIGNATURE_BYTES


def test_the_blocks_of_the_next_batches_are_prefetched(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WHOLE_FILES_LIMIT", 0.0)
    data = data_of(tmp_path, f"file://{corpus}")
    sampler = DistributedBatchSampler(len(data.train), 4, seed=1)
    batches = iter(PrefetchingSampler(sampler, data.train.prefetch, batches=5))
    first = next(batches)
    assert first.tolist() == next(iter(sampler)).tolist()
    prefetched = np.concatenate(list(itertools.islice(sampler, 6)))
    starts = {(32 * window // 5000, (32 * window % 5000) * 2 // 4096) for window in prefetched.tolist()}
    paths = [f"train-{shard:05d}.bin/{block:08d}" for shard, block in starts]
    wait_until(lambda: all(list(tmp_path.glob(f"remote/*/{path}")) for path in paths))


def test_the_least_recently_read_files_are_deleted(tmp_path: Path) -> None:
    cache, folder = DiskCache(tmp_path, max_bytes=1320), tmp_path / ("0" * 32) / "train.bin"
    for number in range(10):
        cache.write(folder / f"{number:08d}", bytes(100))
        os.utime(folder / f"{number:08d}", (1000 + number, 1000 + number))
    assert cache.read(folder / "00000000", length=100) == bytes(100)
    cache.write(folder / "00000010", bytes(100))
    there = {int(file.name) for file in folder.iterdir()}
    assert 0 in there, "it was read just now"
    assert {1, 2}.isdisjoint(there)
    assert 10 in there


def test_an_unfinished_file_of_a_killed_process_is_deleted(tmp_path: Path) -> None:
    folder = tmp_path / ("0" * 32) / "whole"
    folder.mkdir(parents=True)
    for name in (".x.bin.12345678.tmp", ".y.bin.12345678.tmp"):
        (folder / name).write_bytes(b"half")
    os.utime(folder / ".x.bin.12345678.tmp", (1, 1))
    DiskCache(tmp_path, max_bytes=1000).write(folder / "z.bin", b"1")
    assert {file.name for file in folder.iterdir()} == {".y.bin.12345678.tmp", "z.bin"}


def test_a_full_disk_disables_only_the_cache(
    tmp_path: Path, corpus: Path, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: DiskCache, path: Path, pieces: Any, **options: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DiskCache, "write_pieces", full)
    assert rows_of(data_of(tmp_path, f"file://{corpus}")) == expected
    assert caplog.text.count(f"{tmp_path / 'remote'}: the cache cannot store any more") in range(1, 5), "at most once per thread"


def epoch_in_a_process(cache: Path, url: str) -> str:
    module.BLOCK = 4096
    return hashlib.sha256(str(rows_of(data_of(cache, url, cache_bytes=60_000))).encode()).hexdigest()


@pytest.mark.slow
def test_several_processes_share_a_cache(tmp_path: Path, corpus: Path, expected: list[list[int]]) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        hashes = pool.starmap(epoch_in_a_process, [(tmp_path, f"file://{corpus}")] * 2)
    assert set(hashes) == {hashlib.sha256(str(expected).encode()).hexdigest()}


def test_datasets_can_be_pickled(tmp_path: Path, corpus: Path) -> None:
    data = data_of(tmp_path, f"file://{corpus}")
    data.train[np.array([3])]
    again = pickle.loads(pickle.dumps(data.train))
    assert again[np.array([3])][0].tolist() == data.train[np.array([3])][0].tolist()


def test_other_protocols_and_formats_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "SCHEMES", (*urls.SCHEMES, "memory"))
    ids = stream(TRAIN)
    for name, folder in (
        ("nano", write_nanogpt(tmp_path / "nano", train=ids, val=ids)),
        ("llmc", write_llmc(tmp_path / "llmc", train=[ids], val=ids)),
    ):
        fsspec.filesystem("memory").put(str(folder), f"/{name}", recursive=True)
        data = data_of(tmp_path / name, f"memory://{name}")
        assert data.split.train.read(500, 700).tolist() == ids[500:1200]


def test_an_invalid_url_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.path=file://.*/nothing: there is no such folder"):
        open_corpus(RemoteFiles(f"file://{tmp_path}/nothing", remote_settings()))
    with pytest.raises(UserError, match=r"^data\.path=nowhere://x: URLs that begin with nowhere:// are not opened"):
        open_corpus(RemoteFiles("nowhere://x", remote_settings()))


def test_the_url_of_a_manifest_means_its_folder(tmp_path: Path, corpus: Path, expected: list[list[int]]) -> None:
    assert rows_of(data_of(tmp_path, f"file://{corpus}/manifest.json")) == expected


def test_fetching_stops_with_training(tmp_path: Path, corpus: Path, failing: type[FailingFileSystem]) -> None:
    data = data_of(tmp_path, f"failing://{corpus}", retries=1000)
    failing.failures = itertools.repeat("error")

    def read() -> None:
        with suppress(StoppedError):
            next(iter(data.train_dataloader()))

    threading.Thread(target=read, daemon=True).start()
    wait_until(lambda: failing.reads > 20)
    data.stop_workers()
    wait_until(lambda: not any(isinstance(thread, FetcherThread) for thread in threading.enumerate()))
    failing.failures = itertools.repeat("")
    assert len(rows_of(data)) > 0, "a later read starts new threads"

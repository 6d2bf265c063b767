"""Measure the loading of batches from a hundred million tokens."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.measure import Measurement, now

SHARDS = 10
DOCUMENT = 500  # tokens, including one end of text
END_OF_TEXT = 256  # of the byte tokenizer


def ours(*, n_tokens: int, context_length: int, batch_size: int, batches: int = 20_000) -> Measurement:
    """Measure the training DataLoader on shuffled windows of a token file."""
    from gpt_pretrain.data.dataset import TokenWindows
    from gpt_pretrain.data.files import LocalFiles
    from gpt_pretrain.data.token_stream import Shard

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "train.bin")
        _write(path, 0, n_tokens)
        data = _data(batch_size=batch_size, context_length=context_length)
        process = psutil.Process()
        before = process.memory_info().rss
        tokens = Shard(LocalFiles(path.parent), path.name, n_tokens, 2)
        data.train = TokenWindows(tokens, context_length=context_length, stride=context_length)
        seconds = _seconds(iter(data.train_dataloader()), min(batches, n_tokens // (context_length * batch_size) - 1))
        return Measurement(seconds, process.memory_info().rss - before)


def shards(
    *, n_tokens: int, context_length: int, batch_size: int, batches: int = 20_000, remote: bool = False, documents: bool = False
) -> Measurement:
    """Measure the training DataLoader on ten shards in llm.c's format.

    Args:
        remote: Read the shards from a URL with a warm cache of whole files.
        documents: Mask attention between documents of DOCUMENT tokens.
    """
    from gpt_pretrain.config.schema import RemoteSettings
    from gpt_pretrain.data.remote.remote_cache import CachedFiles
    from gpt_pretrain.data.remote.remote_files import RemoteFiles

    with tempfile.TemporaryDirectory() as folder:
        size = n_tokens // SHARDS
        for number in range(SHARDS):
            _write(Path(folder, f"made_train_{number:06d}.bin"), number * size, size, header=True)
        _write(Path(folder, "made_val_000000.bin"), 0, 10 * context_length, header=True)
        path = f"file://{folder}" if remote else folder
        with tempfile.TemporaryDirectory() as cache:
            if remote:
                checksums: dict[str, str | None] = {file.name: None for file in Path(folder).iterdir()}
                data = _shard_data(path, cache, batch_size=batch_size, context_length=context_length, documents=documents)
                files = RemoteFiles(path, RemoteSettings())
                key = data.split.text_sha256
                CachedFiles(files, key=key, cache_dir=Path(cache), checksums=checksums).fetch_whole_files()
            process = psutil.Process()
            before = process.memory_info().rss
            data = _shard_data(path, cache, batch_size=batch_size, context_length=context_length, documents=documents)
            seconds = _seconds(iter(data.train_dataloader()), min(batches, n_tokens // (context_length * batch_size) - 1))
            return Measurement(seconds, process.memory_info().rss - before)


def memmap(*, n_tokens: int, context_length: int, batch_size: int, batches: int = 20_000) -> Measurement:
    """Measure nanoGPT's loading: a new np.memmap for each batch, and windows at random positions."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "train.bin")
        _write(path, 0, n_tokens)
        process = psutil.Process()
        before = process.memory_info().rss

        def endless_batches() -> Iterator[Any]:
            while True:
                data = np.memmap(path, dtype=np.uint16, mode="r")
                positions = torch.randint(len(data) - context_length, (batch_size,))
                x = torch.stack([torch.from_numpy(data[i : i + context_length].astype(np.int64)) for i in positions])
                y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + context_length].astype(np.int64)) for i in positions])
                yield x, y

        seconds = _seconds(endless_batches(), min(batches, n_tokens // (context_length * batch_size) - 1))
        return Measurement(seconds, process.memory_info().rss - before)


def _write(path: Path, start: int, count: int, *, header: bool = False) -> None:
    """Write a file of tokens that look like documents of bytes."""
    with open(path, "wb") as stream:
        if header:
            head = np.zeros(256, "<i4")
            head[:3] = 20240520, 1, count
            head.tofile(stream)
        for begin in range(start, start + count, 1 << 20):
            ids = np.arange(begin, min(begin + (1 << 20), start + count))
            np.where(ids % DOCUMENT, ids % 251, END_OF_TEXT).astype("<u2").tofile(stream)


def _settings(**changes: Any) -> Any:
    from gpt_pretrain.config.schema import DataSettings

    fields: dict[str, Any] = {
        "name": "text", "path": None, "url": None, "sha256": None, "cache_dir": None,
        "train_ratio": 0.9, "stride": None, "num_workers": 0,
    }  # fmt: skip
    return DataSettings(**(fields | changes))


def _data(*, batch_size: int, context_length: int, **changes: Any) -> Any:
    from gpt_pretrain.data.datamodule import TextDataModule
    from gpt_pretrain.tokenizers.build import build_tokenizer

    settings = _settings(batch_size=batch_size, **changes)
    return TextDataModule(settings, build_tokenizer("byte"), context_length=context_length, seed=1)


def _shard_data(path: str, cache: str, *, batch_size: int, context_length: int, documents: bool) -> Any:
    changes = {"name": "shards", "path": path, "cache_dir": cache, "respect_documents": documents}
    data = _data(batch_size=batch_size, context_length=context_length, **changes)
    data.prepare_data()
    return data


def _seconds(batches: Iterator[Any], count: int) -> list[float]:
    """Return the seconds of each batch, without the first ten."""
    stamps = [now()]
    for _ in range(count):
        next(batches)
        stamps.append(now())
    return [end - start for start, end in itertools.pairwise(stamps[10:])]

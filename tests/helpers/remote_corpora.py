"""A corpus of shards behind a URL, and its rows."""

from pathlib import Path
from typing import Any

from gpt_pretrain.config.schema import RemoteSettings
from gpt_pretrain.data.datamodule import TextDataModule
from tests.helpers.data_settings import data_settings
from tests.helpers.made_shards import BYTE, random_documents

TRAIN, VAL = random_documents(1200, seed=1), random_documents(150, seed=2)


def remote_settings(**changes: Any) -> RemoteSettings:
    """Return settings with short timeouts."""
    return RemoteSettings(**({"cache_bytes": 10**8, "timeout": 5.0, "threads": 4} | changes))


def data_of(cache: Path, url: str, *, num_workers: int = 0, format: str = "auto", **changes: Any) -> TextDataModule:  # noqa: A002
    """Open the corpus behind a URL."""
    remote = remote_settings(**changes)
    chosen = data_settings(cache, name="shards", path=url, num_workers=num_workers, format=format, remote=remote)
    data = TextDataModule(chosen, BYTE, context_length=32, seed=1)
    data.prepare_data()
    return data


def rows_of(data: TextDataModule) -> list[list[int]]:
    """Return the windows of an epoch."""
    rows = [row for batch in data.train_dataloader() for row in batch[0].tolist()]
    data.stop_workers()
    return rows

"""`data` settings for tests."""

from __future__ import annotations

from pathlib import Path

from gpt_pretrain.config.schema import DataSettings


def data_settings(cache_dir: Path, **changes: object) -> DataSettings:
    """Return settings for the sample story in batches of 4, with these changes."""
    fields: dict[str, object] = {
        "name": "sample",
        "path": None,
        "url": None,
        "sha256": None,
        "cache_dir": str(cache_dir),
        "batch_size": 4,
        "train_ratio": 0.9,
        "stride": None,
        "num_workers": 0,
    }
    return DataSettings(**(fields | changes))  # type: ignore[arg-type]

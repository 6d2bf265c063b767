"""Loading batches from a hundred million tokens."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import numpy as np
import psutil

from benchmarks.measure import Measurement, now


def ours(*, n_tokens: int, context_length: int, batch_size: int, batches: int = 20_000) -> Measurement:
    """The training DataLoader, as the Trainer iterates it: shuffled windows out of a token file."""
    from gpt_pretrain.data.datamodule import TextDataModule  # these bring Lightning, which --help need not wait for
    from gpt_pretrain.data.tokens import Tokens
    from gpt_pretrain.data.windows import TokenWindows
    from gpt_pretrain.settings import DataSettings
    from gpt_pretrain.tokenizer import build_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "train.bin")
        with open(path, "wb") as stream:
            for start in range(0, n_tokens, 1 << 20):
                np.arange(start, min(start + (1 << 20), n_tokens)).astype("<u2").tofile(stream)
        settings = DataSettings(
            name="text", path=None, url=None, sha256=None, cache_dir=None, batch_size=batch_size,
            train_ratio=0.9, stride=None, num_workers=0,
        )  # fmt: skip
        data = TextDataModule(settings, build_tokenizer("byte"), context_length=context_length, seed=1)
        process = psutil.Process()
        before = process.memory_info().rss
        tokens = Tokens(path=path, count=n_tokens, itemsize=2, sha256="")
        data.train = TokenWindows(tokens, context_length=context_length, stride=context_length)
        loader = iter(data.train_dataloader())
        stamps = [now()]
        for _ in range(min(batches, n_tokens // (context_length * batch_size) - 1)):
            next(loader)
            stamps.append(now())
        grown = process.memory_info().rss - before
    seconds = [end - start for start, end in itertools.pairwise(stamps[10:])]
    return Measurement(seconds, grown)

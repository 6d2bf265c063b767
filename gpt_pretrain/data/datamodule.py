"""The LightningDataModule: text in, batches of token windows out."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from gpt_pretrain.data.text import cache_folder, find_text
from gpt_pretrain.data.tokens import TokenSplit, tokenize_text
from gpt_pretrain.data.windows import Batch, BatchOrder, TokenWindows, shuffled
from gpt_pretrain.errors import UserError
from gpt_pretrain.settings import DataSettings
from gpt_pretrain.tokenizer import Tokenizer

EVAL_EPOCH = 2**31  # no epoch of training has this order


def _leave_signals_to_the_main_process(_worker: int) -> None:
    """Let a Ctrl-C or a scheduler's signal, which every process of a group gets, end none of the workers before their run."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


class TimedLoader(DataLoader[Batch]):
    """A DataLoader that counts the seconds in which its batches were waited for."""

    seconds_waited = 0.0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        return TimedBatches(super().__iter__(), self)


class TimedBatches(Iterator[Batch]):
    """One iteration of a `TimedLoader`."""

    def __init__(self, batches: Iterator[Batch], loader: TimedLoader) -> None:
        self.batches = batches
        self.loader = loader

    def __next__(self) -> Batch:
        start = time.perf_counter()
        try:
            return next(self.batches)
        finally:
            self.loader.seconds_waited += time.perf_counter() - start


def _start_method() -> str | None:
    """How loading processes are started; None: in the usual way, which joblib's processes have replaced by one of their own."""
    return multiprocessing.get_all_start_methods()[0] if multiprocessing.get_start_method() == "loky" else None


class TextDataModule(L.LightningDataModule):
    """A text, split by characters, as shuffled training windows and ordered validation windows.

    Args:
        settings: the `data` settings.
        tokenizer: turns text into ids.
        context_length: tokens a window, T.
        seed: of the order of training windows.
    """

    split: TokenSplit
    train: TokenWindows
    val: TokenWindows

    def __init__(self, settings: DataSettings, tokenizer: Tokenizer, *, context_length: int, seed: int) -> None:
        super().__init__()
        self.settings = settings
        self.tokenizer = tokenizer
        self.context_length = context_length
        self.seed = seed
        self._ready = False
        self._loaders: list[TimedLoader] = []
        self._resume_epoch, self._resume_batch = 0, 0

    def prepare_data(self) -> None:
        """Find the text, download it if need be, and turn it into tokens.

        Raises:
            UserError: when there is no usable text, or too little of it for these windows.
        """
        if self._ready:
            return
        data, cache_dir = self.settings, cache_folder(self.settings)
        text = find_text(data, cache_dir=cache_dir)
        self.split = tokenize_text(text, self.tokenizer, train_ratio=data.train_ratio, cache_dir=cache_dir)
        if problems := self._problems():
            raise UserError(problems)
        stride = self.context_length if data.stride is None else data.stride
        self.train = TokenWindows(self.split.train, context_length=self.context_length, stride=stride)
        self.val = TokenWindows(self.split.val, context_length=self.context_length, stride=stride)
        if len(self.train) < data.batch_size:
            raise UserError(
                f"data.batch_size={data.batch_size}: the training text has only {len(self.train)} windows of "
                f"{self.context_length} tokens. "
                f"Choose data.batch_size={len(self.train)} or less, a shorter model.context_length, or more text."
            )
        self._ready = True

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches; a last short batch is dropped."""
        order = BatchOrder(len(self.train), self.settings.batch_size, seed=self.seed)
        order.epoch, order.start = self._resume_epoch, self._resume_batch
        self._train_loader = self._loader(self.train, order)
        return self._train_loader

    def val_dataloader(self) -> DataLoader[Batch]:
        """Batches in the order of the text; a last short batch is kept."""
        return self._loader(self.val, BatchOrder(len(self.val), self.settings.batch_size))

    def eval_batches(self, n_batches: int) -> tuple[list[Batch], list[Batch]]:
        """The batches behind each printed loss: training windows, drawn once and for all, and validation windows."""
        size = self.settings.batch_size
        drawn = shuffled(np.arange(min(len(self.train), n_batches * size)), len(self.train), seed=self.seed, epoch=EVAL_EPOCH)
        train = np.split(drawn, range(size, len(drawn), size))
        val = islice(BatchOrder(len(self.val), size), n_batches)
        return [self.train[windows] for windows in train], [self.val[windows] for windows in val]

    def state_dict(self) -> dict[str, Any]:
        """How far training has read: the epoch, and the batches done in it."""
        assert self.trainer is not None
        epochs, batches = self.trainer.fit_loop.epoch_progress, self.trainer.fit_loop.epoch_loop.batch_progress
        epoch, batch = epochs.current.processed, batches.current.processed  # type: ignore[attr-defined]
        if epoch < epochs.current.ready:  # in the middle of an epoch
            return {"epoch": epoch, "batch": batch}
        if batch < self.trainer.num_training_batches:  # a limit has ended the epoch early, and Lightning counts it as done
            return {"epoch": epoch - 1, "batch": batch}
        return {"epoch": epoch, "batch": 0}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._resume_epoch, self._resume_batch = int(state_dict["epoch"]), int(state_dict["batch"])

    def _loader(self, windows: TokenWindows, order: BatchOrder) -> TimedLoader:
        workers = self.settings.num_workers
        loader = TimedLoader(
            windows,
            sampler=order,
            batch_size=None,  # the order yields whole batches
            num_workers=workers,
            multiprocessing_context=_start_method() if workers > 0 else None,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_leave_signals_to_the_main_process,
            generator=torch.Generator(),  # of its own, so that making an iterator draws nothing from the training's randomness
        )
        self._loaders.append(loader)
        return loader

    @property
    def seconds_waited(self) -> float:
        """How long training has waited for its batches, in seconds."""
        return self._train_loader.seconds_waited

    @property
    def resumes_mid_epoch(self) -> bool:
        """Whether the checkpoint that this goes on from was made before the end of its epoch."""
        return self._resume_batch > 0

    def stop_workers(self) -> None:
        """End the loading processes, which pay no heed to signals."""
        for loader in self._loaders:
            if (iterator := getattr(loader, "_iterator", None)) is not None and hasattr(iterator, "_shutdown_workers"):
                iterator._shutdown_workers()
        self._loaders = []

    def _problems(self) -> list[str]:
        """Parts of the text that are shorter than one window and its target."""
        problems = []
        T = self.context_length
        train, val = self.split.train.count, self.split.val.count
        longest = min(train, val) - 1
        remedy = (
            f"The largest model.context_length that works here is {longest}; or give more text."
            if longest >= 1
            else "No model.context_length works here; give more text or another data.train_ratio."
        )
        for part, count in (("training", train), ("validation", val)):
            if count <= T:
                problems.append(
                    f"model.context_length={T}: the {part} part has {count} tokens, and a window needs {T + 1}. {remedy}"
                )
        return problems

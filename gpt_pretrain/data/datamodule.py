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

from gpt_pretrain.config.schema import DataSettings
from gpt_pretrain.data.fetching import stop_fetching
from gpt_pretrain.data.prefetching import PrefetchingSampler
from gpt_pretrain.data.sources import DataSource, find_windows
from gpt_pretrain.data.tokens import TokenSplit
from gpt_pretrain.data.windows import Batch, BatchOrder, Windows
from gpt_pretrain.errors import UserError
from gpt_pretrain.tokenizers.base import Tokenizer

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
    """A text or corpus as shuffled training windows and ordered validation windows.

    Args:
        settings: the `data` settings.
        tokenizer: turns text into ids.
        context_length: tokens a window, T.
        seed: of the order of training windows.
        rank: Which of the devices that share the batches this is.
        world_size: How many devices share the batches.

    Attributes:
        split: both parts as tokens.
        train, val: their windows.
        sources: those of a mixture.
        begun_epoch_windows: the `epoch_windows` of a run that is gone on with, perhaps in smaller batches; None for a new one.
    """

    split: TokenSplit
    train: Windows
    val: Windows
    sources: list[DataSource]

    def __init__(
        self,
        settings: DataSettings,
        tokenizer: Tokenizer,
        *,
        context_length: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.tokenizer = tokenizer
        self.context_length = context_length
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.begun_epoch_windows: int | None = None
        self._ready = False
        self._loaders: list[TimedLoader] = []
        self._resume_epoch, self._resume_batch = 0, 0

    def prepare_data(self) -> None:
        """Find the text, download it if need be, and turn it into tokens; or find the shards that hold them.

        Raises:
            UserError: when there is nothing usable, or too little of it for these windows.
        """
        if self._ready:
            return
        data = self.settings
        self.split, self.train, self.val, self.sources = find_windows(data, self.tokenizer, context_length=self.context_length)
        if len(self.train) < data.batch_size:
            raise UserError(
                f"data.batch_size={data.batch_size}: the training text has only {len(self.train)} windows of "
                f"{self.context_length} tokens. "
                f"Choose data.batch_size={len(self.train)} or less, a shorter model.context_length, or more text."
            )
        self._ready = True

    @property
    def epoch_windows(self) -> int:
        """Windows that each epoch trains on, in whole batches of the size that the run began with."""
        size = self.settings.batch_size
        return len(self.train) // size * size if self.begun_epoch_windows is None else self.begun_epoch_windows

    @property
    def batch_windows(self) -> int:
        """Windows that all devices together take at once."""
        return self.settings.batch_size * self.world_size

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches of this rank; a last short batch is left out."""
        order = self._order(self.train, seed=self.seed, taken=self.epoch_windows)
        order.epoch, order.start = self._resume_epoch, self._resume_batch
        self._train_loader = self._loader(self.train, order)
        return self._train_loader

    def val_dataloader(self) -> DataLoader[Batch]:
        """Batches of this rank in the order of the text; a last short batch is kept."""
        return self._loader(self.val, self._order(self.val))

    def eval_batches(self, n_batches: int) -> tuple[list[Batch], list[Batch]]:
        """This rank's batches behind each printed loss: training windows, drawn once and for all, and validation windows."""
        size, ranks = self.settings.batch_size, self.world_size
        places = np.arange(min(len(self.train), n_batches * size))
        drawn = self.train.in_order(places, len(self.train), seed=self.seed, epoch=EVAL_EPOCH)
        train = np.split(drawn, range(size, len(drawn), size))
        val = list(islice(BatchOrder(len(self.val), size), n_batches))
        none = np.arange(0)  # for a rank that finds no batch left
        mine = [[*batches, *[none] * (-len(batches) % ranks)][self.rank :: ranks] for batches in (train, val)]
        return [self.train[windows] for windows in mine[0]], [self.val[windows] for windows in mine[1]]

    def state_dict(self) -> dict[str, Any]:
        """How far training has read: the epoch, and the windows that all ranks together have done in it."""
        assert self.trainer is not None
        epochs, batches = self.trainer.fit_loop.epoch_progress, self.trainer.fit_loop.epoch_loop.batch_progress
        epoch, batch = epochs.current.processed, batches.current.processed  # type: ignore[attr-defined]
        state = {"epoch": epoch, "windows": batch * self.batch_windows, "epoch_windows": self.epoch_windows}
        if epoch < epochs.current.ready:  # in the middle of an epoch
            return state
        if batch < self.trainer.num_training_batches:  # a limit has ended the epoch early, and Lightning counts it as done
            return state | {"epoch": epoch - 1}
        return state | {"windows": 0}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, perhaps by another number of ranks."""
        self._resume_epoch = int(state_dict["epoch"])
        self._resume_batch = int(state_dict["windows"]) // self.batch_windows

    def _order(self, windows: Windows, *, seed: int | None = None, taken: int | None = None) -> BatchOrder:
        return BatchOrder(
            len(windows),
            self.settings.batch_size,
            seed=seed,
            taken=taken,
            order=windows.in_order,
            rank=self.rank,
            world_size=self.world_size,
        )

    def _loader(self, windows: Windows, order: BatchOrder) -> TimedLoader:
        workers = self.settings.num_workers
        loader = TimedLoader(
            windows,
            sampler=PrefetchingSampler(order, windows, batches=self.settings.remote.prefetch_batches)
            if windows.remote
            else order,
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

    @property
    def resume_batch(self) -> int:
        """The batch of this rank that training begins at, in its first epoch."""
        return self._resume_batch

    def stop_workers(self) -> None:
        """End the loading processes, which pay no heed to signals, and the threads that fetch from elsewhere."""
        stop_fetching()
        for loader in self._loaders:
            if (iterator := getattr(loader, "_iterator", None)) is not None and hasattr(iterator, "_shutdown_workers"):
                iterator._shutdown_workers()
        self._loaders = []

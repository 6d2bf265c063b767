"""The LightningDataModule: a text or corpus in, batches of token windows out."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from gpt_pretrain.config.custom_parts import OF_THE_LOADER
from gpt_pretrain.config.schema import DataSettings
from gpt_pretrain.data.custom_data import build_custom_datasets
from gpt_pretrain.data.dataset import Batch, WindowDataset
from gpt_pretrain.data.loader import TimedLoader, check_locks, ignore_signals, start_method
from gpt_pretrain.data.remote.fetching import stop_fetching
from gpt_pretrain.data.sampler import DistributedBatchSampler, PrefetchingSampler
from gpt_pretrain.data.sources import DataSource, build_datasets
from gpt_pretrain.data.token_stream import TokenSplit
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.argument_types import check_type
from gpt_pretrain.system.environment import use_short_socket_folder
from gpt_pretrain.system.formatting import format_count
from gpt_pretrain.tokenizers.base import Tokenizer

EVAL_EPOCH = 2**31  # a number that no epoch of training reaches, for an order of its own


class TextDataModule(L.LightningDataModule):
    """A text or corpus as shuffled training windows and ordered validation windows.

    Args:
        settings: The `data` settings.
        tokenizer: Tokenizes the text.
        context_length: Tokens per window, T.
        seed: Seed of the order of the training windows.
        rank: The rank that gets the batches.
        world_size: Number of ranks that share the batches.
        custom: The user's own LightningDataModule and its arguments, whose datasets are read in place of a text.

    Attributes:
        split: The training set and the validation set as tokens.
        train: The windows to train on.
        val: The windows to validate on.
        sources: The sources of a mixture; otherwise empty.
        resumed_epoch_windows: The `epoch_windows` of the run that is resumed, whose batches may have been smaller, or None.
        resume_batch: The batch of this rank that training begins with in its first epoch.
    """

    split: TokenSplit
    train: WindowDataset
    val: WindowDataset
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
        custom: Mapping[str, Any] | None = None,
    ) -> None:
        check_type("settings", settings, DataSettings, "settings, such as load_settings('data.path=FILE').data")
        check_type("tokenizer", tokenizer, Tokenizer, "a tokenizer, such as build_tokenizer('gpt2')")
        check_type("context_length", context_length, Integral, "a whole number, such as settings.model.context_length")
        if context_length < 1:
            raise UserError(f"The context_length of a TextDataModule must be at least 1, not {context_length}.")
        for name, number in {"seed": seed, "rank": rank, "world_size": world_size}.items():
            check_type(name, number, Integral, "a whole number")
        if seed < 0 or not 0 <= rank < world_size:
            given = f"seed={seed}, rank={rank}, world_size={world_size}"
            raise UserError(f"{given}: seed and rank must be at least 0, and rank below world_size.")
        super().__init__()
        self.settings = settings
        self.custom = custom
        self.tokenizer = tokenizer
        self.context_length = int(context_length)
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.resumed_epoch_windows: int | None = None
        self.resume_batch = 0
        self._resume_epoch = 0
        self._prepared = False
        self._loaders: list[TimedLoader] = []

    if not TYPE_CHECKING:  # which would take any attribute to exist

        def __getattr__(self, name: str) -> Any:
            """Explain why an attribute that `prepare_data` sets is missing."""
            if name in TextDataModule.__annotations__:
                raise AttributeError(f"A TextDataModule has no {name} yet. Call setup() first.")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def prepare_data(self) -> None:
        """Find the text, download it if necessary, and tokenize it; or find the token shards.

        Raises:
            UserError: If there is no usable data, or too little of it for a window or a batch.
        """
        if self._prepared:
            return
        if self.custom is None:
            data = build_datasets(self.settings, self.tokenizer, context_length=self.context_length)
            self.split, self.train, self.val, self.sources = data.split, data.train, data.val, data.sources
        else:
            self._prepare_custom(self.custom)
        n_windows, batch_size = len(self.train), self.settings.batch_windows
        if n_windows < batch_size:
            windows = format_count(n_windows, "window")
            stride = self.settings.stride
            remedy = f"data.batch_size={n_windows} or less, a shorter model.context_length, or more text"
            if stride is not None and stride > self.context_length:
                remedy = f"data.stride=null ({stride} now), or {remedy}"
            raise UserError(
                f"data.batch_size={batch_size}: the training set has only {windows} of {self.context_length} tokens. "
                f"Choose {remedy}."
            )
        self._prepared = True

    def setup(self, stage: str | None = None) -> None:
        """Prepare the data of this process, unless `prepare_data` has."""
        self.prepare_data()

    def _prepare_custom(self, fields: Mapping[str, Any]) -> None:
        """Read the user's own data, in batches as large as its loader's unless the settings have a size."""
        own = build_custom_datasets(fields, self.tokenizer, context_length=self.context_length, seed=self.seed)
        self.split, self.train, self.val, self.sources = own.split, own.train, own.val, []
        if self.settings.batch_windows == OF_THE_LOADER:
            self.settings.batch_size = own.batch_size

    @property
    def epoch_windows(self) -> int:
        """Number of windows that an epoch trains on, in whole batches of the size that the run began with."""
        batch_size = self.settings.batch_windows
        whole_batches = len(self.train) // batch_size * batch_size
        return whole_batches if self.resumed_epoch_windows is None else self.resumed_epoch_windows

    @property
    def global_batch_size(self) -> int:
        """Number of windows that all ranks together read in one batch each."""
        return self.settings.batch_windows * self.world_size

    @property
    def resumes_mid_epoch(self) -> bool:
        """True if the run resumes from a checkpoint within an epoch."""
        return self.resume_batch > 0

    @property
    def seconds_waited(self) -> float:
        """Seconds that training has waited for batches."""
        return self._train_loader.seconds_waited

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return a loader of this rank's shuffled training batches, without a last, shorter batch."""
        sampler = self._sampler(self.train, seed=self.seed, epoch_windows=self.epoch_windows)
        sampler.epoch, sampler.start = self._resume_epoch, self.resume_batch
        self._train_loader = self._loader(self.train, sampler)
        return self._train_loader

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return a loader of this rank's validation batches in the order of the text, with a last, shorter batch."""
        return self._loader(self.val, self._sampler(self.val))

    def eval_batches(self, n_batches: int) -> tuple[list[Batch], list[Batch]]:
        """Return this rank's batches for the losses at each evaluation: training and validation windows.

        They stay the same for the whole run. The training windows are chosen at random, and the validation windows evenly: the
        beginning of a validation set is often easier or harder than the rest.
        """
        size = self.settings.batch_windows
        n_train, n_val = (min(len(windows), n_batches * size) for windows in (self.train, self.val))
        train = self.train.epoch_indices(np.arange(n_train), len(self.train), seed=self.seed, epoch=EVAL_EPOCH)
        val = np.arange(n_val) * len(self.val) // max(n_val, 1)
        train_indices, val_indices = (self._share(np.split(chosen, range(size, len(chosen), size))) for chosen in (train, val))
        return [self.train[indices] for indices in train_indices], [self.val[indices] for indices in val_indices]

    def state_dict(self) -> dict[str, Any]:
        """Return the position of training: the epoch, and the windows that all ranks together have read in it."""
        assert self.trainer is not None
        epochs, batches = self.trainer.fit_loop.epoch_progress, self.trainer.fit_loop.epoch_loop.batch_progress
        epoch, batch = epochs.current.processed, batches.current.processed  # type: ignore[attr-defined]
        state = {"epoch": epoch, "windows": batch * self.global_batch_size, "epoch_windows": self.epoch_windows}
        if epoch < epochs.current.ready:  # within an epoch
            return state
        if batch < self.trainer.num_training_batches:
            # A limit such as max_steps ended the epoch early, but Lightning counts it as processed.
            return state | {"epoch": epoch - 1}
        return state | {"windows": 0}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume at the position of a `state_dict`, which another number of ranks may have saved."""
        self._resume_epoch = int(state_dict["epoch"])
        self.resume_batch = int(state_dict["windows"]) // self.global_batch_size

    def stop_workers(self) -> None:
        """Stop the worker processes, which ignore signals, and the threads that fetch remote data."""
        stop_fetching()
        for loader in self._loaders:
            if (iterator := getattr(loader, "_iterator", None)) is not None and hasattr(iterator, "_shutdown_workers"):
                iterator._shutdown_workers()
        self._loaders = []

    def _share(self, batches: list[np.ndarray]) -> list[np.ndarray]:
        """Return this rank's share of the batches, filled up with empty ones so that all ranks have the same number."""
        empty = [np.arange(0)] * (-len(batches) % self.world_size)
        return [*batches, *empty][self.rank :: self.world_size]

    def _sampler(
        self, windows: WindowDataset, *, seed: int | None = None, epoch_windows: int | None = None
    ) -> DistributedBatchSampler:
        return DistributedBatchSampler(
            len(windows),
            self.settings.batch_windows,
            seed=seed,
            epoch_windows=epoch_windows,
            order=windows.epoch_indices,
            rank=self.rank,
            world_size=self.world_size,
        )

    def _loader(self, windows: WindowDataset, sampler: DistributedBatchSampler) -> TimedLoader:
        workers, ahead = self.settings.num_workers, self.settings.remote.prefetch_batches
        if workers > 0:
            use_short_socket_folder()
            check_locks(workers)
        loader = TimedLoader(
            windows,
            sampler=PrefetchingSampler(sampler, windows.prefetch, batches=ahead) if windows.remote else sampler,
            batch_size=None,  # the sampler yields whole batches
            num_workers=workers,
            multiprocessing_context=start_method() if workers > 0 else None,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=ignore_signals,
            # An iterator draws a seed when it is created. With its own generator it leaves the global random state as it is.
            generator=torch.Generator(),
        )
        self._loaders.append(loader)
        return loader

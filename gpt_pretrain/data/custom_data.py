"""The user's own LightningDataModule: its datasets become windows, which are read in this program's order.

The order of the batches stays a function of seed and epoch, so resumed runs, and runs on more devices, read the same windows.
For this a dataset must have a length, and give each sample by its number.

Shapes: B windows of a batch, T tokens of a window.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from gpt_pretrain.config.custom_parts import TARGET
from gpt_pretrain.config.custom_targets import call_target, describe_failure
from gpt_pretrain.data.dataset import Batch, WindowDataset
from gpt_pretrain.data.token_stream import TokenSplit
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.kernels.loss import IGNORED
from gpt_pretrain.tokenizers.base import Tokenizer

GROUP = "data"
HASHED = 256  # windows of each set whose content is compared when a run resumes
ORDERS = (RandomSampler, SequentialSampler, DistributedSampler)  # which this program's own order replaces


@dataclass(frozen=True)
class CustomDatasets:
    """The user's data as this program reads them, with the `batch_size` of the training loader."""

    split: TokenSplit
    train: LoaderWindows
    val: LoaderWindows
    batch_size: int


class LoaderWindows(WindowDataset):
    """The samples of a DataLoader, each a window of token ids and one of target ids.

    Args:
        loader: The DataLoader.
        name: The class that has made it, for messages.
        vocab_size: Number of token ids, V.
        context_length: Most tokens in a window.
    """

    remote = False

    def __init__(self, loader: DataLoader[Any], *, name: str, vocab_size: int, context_length: int) -> None:
        self.loader = loader
        self.name = name
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.length = self[np.arange(1)][0].shape[1]  # of the first window, T

    def __len__(self) -> int:
        return len(self.loader.dataset)  # type: ignore[arg-type]

    def __getitem__(self, indices: np.ndarray) -> Batch:
        """Return the windows with these indices, (B,), as a batch; without indices, one window without targets."""
        if not len(indices):
            token_ids = torch.zeros(1, self.length, dtype=torch.int64)
            return token_ids, torch.full_like(token_ids, IGNORED)
        try:
            samples = [self.loader.dataset[int(index)] for index in indices]
            batch = self.loader.collate_fn(samples)
        except Exception as error:  # whatever the user's dataset raises
            raise UserError(f"{GROUP}.{TARGET}={self.name}: reading its data fails: {describe_failure(error)}") from error
        return self._checked(batch, size=len(indices))

    def prefetch(self, indices: np.ndarray) -> None:
        """Do nothing: the user's dataset reads a window when it is needed."""

    def _checked(self, batch: Any, *, size: int) -> Batch:
        """Return a batch as int64.

        Raises:
            UserError: If it is not (token_ids, target_ids) of one shape, or holds ids that the vocabulary lacks.
        """
        problem = batch_problem(batch, size=size, vocab_size=self.vocab_size, context_length=self.context_length)
        if problem is not None:
            raise UserError(f"{GROUP}.{TARGET}={self.name} yields a batch that cannot be used: {problem}")
        token_ids, target_ids = batch
        return token_ids.long(), target_ids.long()


class WindowTokens:
    """The token ids of windows side by side, as a stream.

    Args:
        windows: The windows, all of the length of the first.
    """

    remote = False

    def __init__(self, windows: LoaderWindows) -> None:
        self.windows = windows
        self.count = len(windows) * windows.length

    def read(self, start: int = 0, count: int | None = None) -> np.ndarray:
        """Return the token ids from `start` on, (count,)."""
        stop = self.count if count is None else min(self.count, start + count)
        length = self.windows.length
        if start >= stop:
            return np.zeros(0, dtype=np.int64)
        first = start // length
        rows = [self.windows[np.array([index])][0][0].numpy() for index in range(first, -(-stop // length))]
        found: np.ndarray = np.concatenate(rows)[start - first * length : stop - first * length]
        return found

    def prefetch(self, start: int, count: int) -> None:
        """Do nothing, as the windows."""


def build_custom_datasets(fields: Mapping[str, Any], tokenizer: Tokenizer, *, context_length: int, seed: int) -> CustomDatasets:
    """Build the user's LightningDataModule, and return the datasets of its loaders.

    Args:
        fields: The `_target_` and its arguments; parameters named tokenizer, context_length and seed are filled in.

    Raises:
        UserError: If it is not one, has no usable loader, or its first batches are not token ids and target ids.
    """
    name = str(fields[TARGET])
    module = call_target(fields, setting=GROUP, tokenizer=tokenizer, context_length=context_length, seed=seed)
    if not isinstance(module, L.LightningDataModule):
        raise UserError(f"{GROUP}.{TARGET}={name} is a {type(module).__name__}, not a LightningDataModule.")
    loaders = [_find_loader(module, part, name) for part in ("train", "val")]
    train, val = (
        LoaderWindows(loader, name=name, vocab_size=tokenizer.vocab_size, context_length=context_length) for loader in loaders
    )
    split = TokenSplit(WindowTokens(train), WindowTokens(val), _hash_windows(train, val))
    return CustomDatasets(split, train, val, int(loaders[0].batch_size or 1))


def _find_loader(module: L.LightningDataModule, part: str, name: str) -> DataLoader[Any]:
    """Return the loader of a set, whose samples can be read by number.

    Raises:
        UserError: If there is none.
    """
    method = f"{part}_dataloader"
    if getattr(type(module), method) is getattr(L.LightningDataModule, method):
        why = " The validation loss chooses the best checkpoint, so it is needed." * (part == "val")
        raise UserError(f"{GROUP}.{TARGET}={name} has no {method}().{why}")
    try:
        if part == "train":
            module.prepare_data()
            module.setup("fit")
        loader = getattr(module, method)()
    except Exception as error:  # whatever the user's code raises
        raise UserError(f"{GROUP}.{TARGET}={name}: {method}() fails: {describe_failure(error)}") from error
    if not isinstance(loader, DataLoader):
        raise UserError(f"{GROUP}.{TARGET}={name}: {method}() returns a {type(loader).__name__}, not a DataLoader of torch.")
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise UserError(
            f"{GROUP}.{TARGET}={name}: the dataset of {method}() has no length, so its order cannot be resumed. Give a dataset "
            "with __len__ and __getitem__, or save the data as token shards for data=shards."
        )
    if loader.batch_sampler is None or not isinstance(loader.sampler, ORDERS):
        raise UserError(
            f"{GROUP}.{TARGET}={name}: {method}() has a sampler of its own, {type(loader.sampler).__name__}, but the windows "
            "are read in this program's order, a function of seed and epoch. Leave out the sampler."
        )
    if len(dataset) == 0:
        raise UserError(f"{GROUP}.{TARGET}={name}: the dataset of {method}() is empty.")
    return loader


def batch_problem(batch: Any, *, size: int, vocab_size: int, context_length: int) -> str | None:
    """Return why a batch cannot be trained on, or None."""
    if not isinstance(batch, tuple | list) or len(batch) != 2 or not all(isinstance(one, Tensor) for one in batch):
        return f"it is {_describe(batch)}, but must be a pair of tensors, (token_ids, target_ids)."
    for name, ids, least in (("token_ids", batch[0], 0), ("target_ids", batch[1], IGNORED)):
        if ids.ndim != 2 or len(ids) != size or ids.is_floating_point() or ids.dtype == torch.bool:
            return f"{name} has the shape {tuple(ids.shape)} and the type {ids.dtype}, but must be whole numbers, ({size}, T)."
        if ids.shape != batch[0].shape:
            return f"target_ids has the shape {tuple(ids.shape)}, but token_ids {tuple(batch[0].shape)}; they must be the same."
        if not 1 <= ids.shape[1] <= context_length:
            return f"its windows have {ids.shape[1]} tokens, but model.context_length={context_length}."
        low, high = int(ids.min()), int(ids.max())
        outside = [one for one in (low, high) if not 0 <= one < vocab_size and one != least]
        if outside:
            return f"{name} has the id {outside[0]}, but the vocabulary has {vocab_size} tokens. Choose its tokenizer= too."
    return None


def _describe(batch: Any) -> str:
    if isinstance(batch, tuple | list):
        return f"a {type(batch).__name__} of {len(batch)}: {', '.join(type(one).__name__ for one in batch[:5])}"
    return f"a {type(batch).__name__}"


def _hash_windows(*sets: LoaderWindows) -> str:
    """Return a checksum of the number of windows in each set, and of windows spread evenly over it. Check their targets.

    Raises:
        UserError: If the windows of a set have no targets, or targets that are not the next tokens.
    """
    digest = hashlib.sha256()
    for windows in sets:
        digest.update(len(windows).to_bytes(8, "little"))
        indices = np.unique(np.linspace(0, len(windows) - 1, min(HASHED, len(windows))).astype(np.int64))
        samples = [windows[np.array([index])] for index in indices]
        if (problem := targets_problem(samples)) is not None:
            raise UserError(f"{GROUP}.{TARGET}={windows.name}: {problem}")
        for ids in (ids for batch in samples for ids in batch):
            digest.update(ids.numpy().tobytes())
    return digest.hexdigest()


def targets_problem(samples: Sequence[Batch]) -> str | None:
    """Return why nothing can be learned from the targets of windows, or None."""
    marked = [(batch[0], batch[1], batch[1] != IGNORED) for batch in samples]
    counted = [(token_ids[known], target_ids[known]) for token_ids, target_ids, known in marked if known.any()]
    if samples and not counted:
        return f"all of its target_ids are {IGNORED}, which is not counted. Give the token after each token as its target."
    if all(token_ids.equal(target_ids) for token_ids, target_ids in counted) and any(
        len(set(token_ids.tolist())) > 1 for token_ids, _ in counted
    ):
        return (
            "each target is the token itself, so the model would learn to copy. Targets are not shifted by this program: give "
            "row[:-1] as token_ids and row[1:] as target_ids."
        )
    return None

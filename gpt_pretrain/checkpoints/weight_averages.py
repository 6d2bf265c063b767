"""Choose the weights of a checkpoint: the trained ones, their moving average, or the mean of several checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from gpt_pretrain.checkpoints.checkpoint_file import NoSuchWeightsError
from gpt_pretrain.checkpoints.serialization.tensor_files import StoredTensor
from gpt_pretrain.checkpoints.weight_source import WeightSource, find_source
from gpt_pretrain.runs.folder import without_repetitions

TRAINED, EMA, AVERAGE = "trained", "ema", "average"
KINDS = (TRAINED, EMA, AVERAGE)
MAX_AVERAGED = 100  # checkpoints


def choose_weights(source: WeightSource, kind: str) -> WeightSource:
    """Return a source with the weights of one kind.

    Args:
        kind: "trained"; "ema" for the exponential moving average in a checkpoint; "average" for the mean of the periodic
            checkpoints beside it, step-*.ckpt.

    Raises:
        NoSuchWeightsError: If the source has no such weights.
    """
    if kind == TRAINED:
        return source
    if kind not in KINDS:
        raise NoSuchWeightsError(f"weights={kind}: must be one of {', '.join(KINDS)}.")
    return _moving_average(source) if kind == EMA else _mean_of_checkpoints(source)


def _moving_average(source: WeightSource) -> WeightSource:
    if source.average is None:
        raise NoSuchWeightsError(
            f"{source.name} holds no moving average of its weights. Leave out weights=ema; a run keeps one with ema_decay=0.99."
        )
    return replace(source, name=f"{source.name} (moving average)", tensors=source.average)


def _mean_of_checkpoints(source: WeightSource) -> WeightSource:
    folder = Path(source.name).parent
    files = list(without_repetitions(sorted(folder.glob("step-*.ckpt"))))[-MAX_AVERAGED:] if source.content else []
    if len(files) < 2:
        raise NoSuchWeightsError(
            f"{source.name}: weights=average needs two or more periodic checkpoints, step-*.ckpt, in its folder. A run keeps "
            "them with checkpoint.keep=5; leave out weights=average."
        )
    parts = [find_source(file) for file in files]
    if any(_shapes(part) != _shapes(source) for part in parts):
        raise NoSuchWeightsError(
            f"{folder}: its periodic checkpoints have other shapes than {source.name}, so they have no mean."
        )
    tensors = {name: _mean([part.tensors[name] for part in parts]) for name in source.tensors}
    return replace(source, name=f"{folder} (mean of {len(files)} checkpoints)", tensors=tensors)


def _shapes(source: WeightSource) -> dict[str, tuple[int, ...]]:
    return {name: stored.shape for name, stored in source.tensors.items()}


def _mean(parts: Sequence[StoredTensor]) -> StoredTensor:
    """Return the mean of tensors. It is computed when it is read, with one of the tensors in memory at a time."""
    if not isinstance(parts[0].dtype, torch.dtype):
        return parts[-1]

    def read() -> Tensor:
        total = torch.zeros(parts[0].shape)
        for part in parts:
            total += part.read().float() / len(parts)
        return total

    return replace(parts[0], dtype=torch.float32, read=read)

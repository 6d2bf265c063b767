"""Compute the next-token loss of a batch, and the mean loss over many batches.

Shapes: B batch, T time, V vocab_size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt_pretrain.data.dataset import Batch
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.custom import CustomModel
from gpt_pretrain.model.kernels.loss import IGNORED, linear_cross_entropy
from gpt_pretrain.model.language_model import LanguageModel, check_token_ids

# Small batches are evaluated together up to this many tokens. Each forward pass casts all weights to the training's precision.
MERGED_TOKENS = 4096


def next_token_loss(
    model: LanguageModel, token_ids: Tensor, target_ids: Tensor, positions: Tensor | None = None, *, compiled: bool = False
) -> Tensor:
    """Return the mean cross-entropy over all positions that have a target, in nats per token, a scalar.

    Args:
        token_ids: int64, (B, T).
        target_ids: int64, (B, T); IGNORED marks a position without a target.
        positions: int64, (B, T); the position of each token in its document; None if documents are not separated.
        compiled: Whether to compile the loss.

    Raises:
        UserError: If token_ids or target_ids are anything else.
    """
    check_token_ids(token_ids)
    if not isinstance(target_ids, Tensor) or target_ids.shape != token_ids.shape or target_ids.is_floating_point():
        given = f"{tuple(target_ids.shape)}, {target_ids.dtype}" if isinstance(target_ids, Tensor) else type(target_ids).__name__
        raise UserError(
            f"target_ids ({given}) must be the next id at each position of token_ids: int64, {tuple(token_ids.shape)}. A window "
            "of T + 1 ids gives both: window[:, :-1] and window[:, 1:]."
        )
    if isinstance(model, CustomModel):
        assert positions is None
        return model.loss(token_ids, target_ids)
    split = model.split_tied_weight()
    hidden = model.hidden_states(token_ids, positions=positions, embedding=None if split is None else split[0])
    # FSDP has gathered the head's weight only now.
    head = model.head_weight if split is None else split[1]
    cap = model.config.logit_cap
    return linear_cross_entropy(hidden.flatten(0, 1), head, target_ids.flatten(), cap=cap, compiled=compiled)


@dataclass(frozen=True)
class MeanLoss:
    """A loss over many batches.

    Args:
        nats_per_token: The mean loss; NaN if no token has a target.
        bits_per_byte: The same loss for each byte of text; NaN if no byte is known.
    """

    nats_per_token: float
    bits_per_byte: float


class LossTotals:
    """The sums of the losses of many batches. Every token counts the same.

    Args:
        token_bytes: Bytes of text of each token id, int64, (V,), on the device of the batches.
    """

    def __init__(self, token_bytes: Tensor) -> None:
        self.token_bytes = token_bytes
        device = token_bytes.device
        self._sums = torch.zeros(3, dtype=loss_sum_dtype(device), device=device)  # nats, tokens, bytes

    def add(self, loss: Tensor, target_ids: Tensor) -> None:
        """Add the mean loss of a batch, a scalar, and its targets, (B, T)."""
        kept = target_ids != IGNORED
        tokens = kept.sum()
        n_bytes = (self.token_bytes[target_ids.clamp(min=0)] * kept).sum()  # Indexing with kept would wait for the GPU.
        self._sums = self._sums + torch.stack([loss.to(self._sums.dtype) * tokens, tokens, n_bytes])

    def mean(self, all_reduce: Callable[[Tensor], Tensor]) -> MeanLoss:
        """Return the mean over the batches of all ranks.

        Args:
            all_reduce: Returns the sum of a tensor over all ranks.
        """
        nats, tokens, n_bytes = all_reduce(self._sums).tolist()
        return MeanLoss(nats / tokens if tokens else math.nan, nats / math.log(2) / n_bytes if n_bytes else math.nan)


def merge_batches(batches: Iterable[Batch], *, max_tokens: int = MERGED_TOKENS) -> Iterator[Batch]:
    """Concatenate consecutive batches of equally long windows, up to max_tokens tokens."""
    waiting: list[Batch] = []
    for batch in batches:
        size = sum(len(one[0]) for one in [*waiting, batch]) * batch[0].shape[1]
        if waiting and (size > max_tokens or batch[0].shape[1] != waiting[0][0].shape[1]):
            yield _concatenate(waiting)
            waiting = []
        waiting.append(batch)
    if waiting:
        yield _concatenate(waiting)


def _concatenate(batches: Sequence[Batch]) -> Batch:
    return batches[0] if len(batches) == 1 else tuple(map(torch.cat, zip(*batches, strict=True)))  # type: ignore[return-value]


@torch.no_grad()
def mean_loss(
    model: LanguageModel, batches: Iterable[Batch], *, token_bytes: Tensor, all_reduce: Callable[[Tensor], Tensor]
) -> MeanLoss:
    """Return the loss over the batches of all ranks, with dropout off and the random state untouched.

    Args:
        batches: This rank's batches. All ranks have the same number of batches.
        token_bytes: Bytes of text of each token id, int64, (V,), on the model's device.
        all_reduce: Returns the sum of a tensor over all ranks.
    """
    was_training = model.training
    model.eval()
    totals = LossTotals(token_bytes)
    try:
        for batch in batches:
            token_ids, target_ids, *rest = (tensor.to(token_bytes.device) for tensor in batch)
            totals.add(next_token_loss(model, token_ids, target_ids, *rest), target_ids)
    finally:
        model.train(was_training)
    return totals.mean(all_reduce)


def loss_sum_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype for sums of many losses: float64, or float32 on Apple's GPUs, which lack float64."""
    return torch.float32 if device.type == "mps" else torch.float64

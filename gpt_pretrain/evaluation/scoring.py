"""Score the tokens of many sequences with a model, in batches without the logits of all positions.

Shapes: B batch, T time, N scored tokens, D emb_dim.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from gpt_pretrain.errors import UserError
from gpt_pretrain.model.kernels.loss import token_losses
from gpt_pretrain.model.language_model import LanguageModel

SORTED_BATCHES = 32  # Batches of requests that are sorted by length together, so that little of a batch is padding.
BATCH_TOKENS = {"cpu": 2048, "cuda": 1 << 16}  # Tokens of a batch, by device type; more are not faster.


@dataclass(frozen=True)
class ScoreRequest:
    """A sequence of tokens, of which the last ones are scored.

    Args:
        token_ids: (T + 1,); at most context_length + 1 of them.
        n_scored: Number of tokens to score; at most T.
    """

    token_ids: np.ndarray
    n_scored: int


@dataclass(frozen=True)
class TokenScores:
    """The scores of the last tokens of a sequence.

    Args:
        losses: Minus the log-probability of each token in nats, float32, (N,).
        is_top: Whether each token is the most likely one, bool, (N,).
    """

    losses: np.ndarray
    is_top: np.ndarray


class Scorer:
    """A model with the precision and the size of the batches in which it scores.

    Args:
        model: In eval mode.
        name: The name of the model, for messages.
        precision: 32-true or bf16-mixed.
        batch_tokens: The most tokens of a batch, with its padding; at least one sequence is taken. None: what suits the device.

    Attributes:
        tokens: Number of tokens that the model has read so far.
        padding: Number of positions of padding beside them.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        name: str = "The model",
        precision: str = "32-true",
        batch_tokens: int | None = None,
    ) -> None:
        self.model = model
        self.name = name
        self.precision = precision
        self.device = model.head_weight.device
        self.batch_tokens = batch_tokens or BATCH_TOKENS.get(self.device.type, BATCH_TOKENS["cuda"])
        self.tokens, self.padding = 0, 0

    @property
    def context_length(self) -> int:
        """The most tokens that the model reads at a time."""
        return self.model.config.context_length

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[TokenScores]:
        """Yield the scores of each request, in their order.

        Batches consist of requests of similar length. The scores of a request do not depend on the others in its batch, except
        for rounding.

        Raises:
            UserError: If a loss is NaN or infinite.
        """
        waiting = iter(requests)
        while group := list(islice(waiting, self._group_size())):
            yield from self._score_group(group)

    def _group_size(self) -> int:
        return SORTED_BATCHES * max(1, self.batch_tokens // self.context_length)

    def _score_group(self, group: list[ScoreRequest]) -> list[TokenScores]:
        results: dict[int, TokenScores] = {}
        order = sorted(range(len(group)), key=lambda index: -len(group[index].token_ids))
        while order:
            longest = len(group[order[0]].token_ids) - 1
            n_rows = max(1, self.batch_tokens // max(longest, 1))
            rows, order = order[:n_rows], order[n_rows:]
            results |= zip(rows, self._score_batch([group[row] for row in rows]), strict=True)
        return [results[index] for index in range(len(group))]

    @torch.inference_mode()
    def _score_batch(self, batch: list[ScoreRequest]) -> list[TokenScores]:
        lengths = [len(request.token_ids) - 1 for request in batch]
        token_ids = np.zeros((len(batch), max(lengths)), dtype=np.int64)  # A later position never changes an earlier one.
        scored = np.zeros_like(token_ids, dtype=bool)
        for row, (request, length) in enumerate(zip(batch, lengths, strict=True)):
            token_ids[row, :length] = request.token_ids[:-1]
            scored[row, length - request.n_scored : length] = True
        targets = np.concatenate([request.token_ids[len(request.token_ids) - request.n_scored :] for request in batch])
        with self._autocast():
            hidden = self.model.hidden_states(torch.from_numpy(token_ids).to(self.device))  # (B, T, D)
            hidden = hidden[torch.from_numpy(scored).to(self.device)]  # (N, D)
            target_ids = torch.from_numpy(targets.astype(np.int64)).to(self.device)
            losses, is_top = token_losses(hidden, self.model.head_weight, target_ids, cap=self.model.config.logit_cap)
        if not bool(losses.isfinite().all()):
            raise UserError(
                f"{self.name} computes a loss that is NaN or infinite in precision={self.precision}, so it has no result. "
                + (
                    "Try precision=32-true."
                    if self.precision != "32-true"
                    else "Its weights are damaged, or their training diverged."
                )
            )
        self.tokens += sum(lengths)
        self.padding += token_ids.size - sum(lengths)
        ends = np.cumsum([request.n_scored for request in batch])[:-1]
        arrays = (np.split(_to_numpy(values), ends) for values in (losses.float(), is_top))
        return [TokenScores(*row) for row in zip(*arrays, strict=True)]

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16-mixed" else nullcontext()


def pick_scoring_precision(precision: str, model: LanguageModel) -> tuple[str, str]:
    """Return the precision to score in, and the reason; "auto" takes bf16 only on a GPU that supports it."""
    if precision != "auto":
        return precision, "as configured"
    if model.head_weight.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16-mixed", "this GPU supports bf16"
    return "32-true", "the exact choice"


def _to_numpy(values: Tensor) -> np.ndarray:
    array: np.ndarray = values.cpu().numpy()
    return array

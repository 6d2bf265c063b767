"""Score the tokens of many sequences with a model, in batches. The logits of unscored positions are not computed.

Shapes: B batch, T time, N scored tokens, D emb_dim.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.packing import MAX_PACKED, PackedRow, ScoreRequest, pack_requests, positions_and_mask
from gpt_pretrain.model.custom import CustomModel
from gpt_pretrain.model.kernels.loss import logit_losses, token_losses
from gpt_pretrain.model.language_model import LanguageModel

SORTED_BATCHES = 32  # Requests of this many batches are sorted by length together, to reduce padding.
BATCH_TOKENS = {"cpu": 2048, "cuda": 1 << 16}  # Tokens of a batch by device type. More are not faster.


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
    """A model that scores sequences, with its precision and its batch size.

    Args:
        model: The model, in eval mode.
        name: The name of the model, for messages.
        precision: 32-true or bf16-mixed.
        batch_tokens: The most tokens of a batch, including padding; None takes a number that suits the device. A batch has at
            least one sequence.

    Attributes:
        tokens: Number of tokens that the model has read so far.
        padding: Number of padded positions so far.
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
        self.device = model.device
        self.batch_tokens = batch_tokens or BATCH_TOKENS.get(self.device.type, BATCH_TOKENS["cuda"])
        self.tokens, self.padding = 0, 0

    @property
    def context_length(self) -> int:
        """The most tokens that the model reads at a time."""
        return self.model.config.context_length

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[TokenScores]:
        """Yield the scores of each request, in their order.

        The scores of a request do not depend on the others in its batch, except for rounding.

        Raises:
            UserError: If a loss is NaN or infinite.
        """
        for (scores,) in self.score_groups([request] for request in requests):
            yield scores

    def score_groups(self, groups: Iterable[Sequence[ScoreRequest]]) -> Iterator[list[TokenScores]]:
        """Yield the scores of each group of requests, such as the choices of a question, in their order.

        The model reads the common beginning of a group's requests only once. Batches consist of rows of similar length.

        Raises:
            UserError: If a loss is NaN or infinite.
        """
        waiting: list[list[PackedRow]] = []
        tokens = 0
        for group in groups:
            # Keeping requests in one row apart takes a mask, which not every model accepts.
            alone = isinstance(self.model, CustomModel) or self.model.config.bigram_rows > 0
            packs = [[request] for request in group] if alone else [group]
            most = min(self.context_length, MAX_PACKED)
            waiting.append([row for pack in packs for row in pack_requests(pack, most=most)])
            tokens += sum(row.length for row in waiting[-1])
            if tokens >= SORTED_BATCHES * self.batch_tokens:
                yield from self._score_waiting(waiting)
                waiting, tokens = [], 0
        yield from self._score_waiting(waiting)

    def _score_waiting(self, waiting: list[list[PackedRow]]) -> Iterator[list[TokenScores]]:
        rows = [row for group in waiting for row in group]
        results: dict[int, list[TokenScores]] = {}
        for batch in self._batches(rows):
            try:
                results |= zip(batch, self._score_batch([rows[index] for index in batch]), strict=True)
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"{self.name}: the memory of the device is too small for batches of {self.batch_tokens:,} tokens. Set a "
                    f"smaller one: batch_tokens={max(1, self.batch_tokens // 4)}"
                ) from error
        begin = 0
        for group in waiting:
            yield [scores for index in range(begin, begin + len(group)) for scores in results[index]]
            begin += len(group)

    def _batches(self, rows: Sequence[PackedRow]) -> Iterator[list[int]]:
        """Yield the numbers of the rows of each batch. Only rows with several sequences need a mask, so they come last."""
        for is_packed in (False, True):
            kept = [index for index, row in enumerate(rows) if (len(row.requests) > 1) == is_packed]
            order = sorted(kept, key=lambda index: -rows[index].length)
            while order:
                n_rows = max(1, self.batch_tokens // max(rows[order[0]].length, 1))
                yield order[:n_rows]
                order = order[n_rows:]

    @torch.no_grad()  # Under inference_mode, tensors that a model keeps could not be used in training later.
    def _score_batch(self, batch: list[PackedRow]) -> list[list[TokenScores]]:
        length = max(row.length for row in batch)
        token_ids = np.zeros((len(batch), length), dtype=np.int64)  # Padding behind a sequence never changes it.
        for index, row in enumerate(batch):
            token_ids[index, : row.length] = row.token_ids
        scored = np.concatenate([index * length + row.scored for index, row in enumerate(batch)])
        targets = np.concatenate([row.targets for row in batch])
        with self._autocast():
            hidden = self._hidden_states(token_ids, batch).flatten(0, 1)[self._to_device(scored)]  # (N, D)
            target_ids, cap = self._to_device(targets), self.model.config.logit_cap
            if isinstance(self.model, CustomModel):
                losses, is_top = logit_losses(hidden, target_ids)
            else:
                losses, is_top = token_losses(hidden, self.model.head_weight, target_ids, cap=cap)
        if not bool(losses.isfinite().all()):
            raise UserError(
                f"{self.name} computes a loss that is NaN or infinite in precision={self.precision}, so it has no result. "
                + (
                    "Try precision=32-true."
                    if self.precision != "32-true"
                    else "Its weights are damaged, or their training diverged."
                )
            )
        n_tokens = sum(row.length for row in batch)
        self.tokens += n_tokens
        self.padding += token_ids.size - n_tokens
        sizes = [request.n_scored for row in batch for request in row.requests]
        arrays = (np.split(_to_numpy(values), np.cumsum(sizes)[:-1]) for values in (losses.float(), is_top))
        scores = [TokenScores(*one) for one in zip(*arrays, strict=True)]
        ends = np.cumsum([len(row.requests) for row in batch]).tolist()
        return [scores[end - len(row.requests) : end] for row, end in zip(batch, ends, strict=True)]

    def _hidden_states(self, token_ids: np.ndarray, batch: list[PackedRow]) -> Tensor:
        """Return the input of the output head, (B, T, D)."""
        if all(len(row.requests) == 1 for row in batch):  # Attention without a mask is faster.
            return self.model.hidden_states(self._to_device(token_ids))
        positions, mask = map(self._to_device, positions_and_mask(batch, token_ids.shape[1]))
        return self.model.hidden_states(self._to_device(token_ids), positions=positions, mask=mask)

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16-mixed" else nullcontext()


def pick_scoring_precision(precision: str, model: LanguageModel) -> tuple[str, str]:
    """Return the precision to score in, and the reason. "auto" takes bf16 only on a GPU that supports it."""
    if precision != "auto":
        return precision, "as configured"
    if model.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16-mixed", "this GPU supports bf16"
    return "32-true", "the exact choice"


def _to_numpy(values: Tensor) -> np.ndarray:
    array: np.ndarray = values.cpu().numpy()
    return array

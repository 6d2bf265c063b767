"""Compute the log-probabilities of tokens, and of the most likely tokens in their places.

Shapes: T time (positions), A alternatives, V vocab_size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpt_pretrain.generation.sampling import check_logits
from gpt_pretrain.tokenizers.base import Tokenizer

LEAST_LOGPROB = -9999.0  # OpenAI's value for the impossible, since JSON has no infinity


@dataclass(frozen=True)
class TokenScore:
    """A token with the model's expectations in its place, in nats, before temperature and filters.

    Args:
        token_id: The token.
        logprob: Its log-probability; None for the first token of a text.
        likely_ids: The most likely tokens in its place, the likeliest first.
        likely_logprobs: Their log-probabilities.
    """

    token_id: int
    logprob: float | None
    likely_ids: tuple[int, ...] = ()
    likely_logprobs: tuple[float, ...] = ()


def score_tokens(logits: Tensor, token_ids: Sequence[int], *, count: int, banned: Tensor | None = None) -> list[TokenScore]:
    """Return the scores of tokens from the logits for them.

    Args:
        logits: (T, V).
        token_ids: The token in each place.
        count: Alternatives of each token, A; at most V.
        banned: Ids that must not be alternatives, since they have no token.

    Raises:
        UserError: If the logits are not finite.
    """
    logprobs = logits.float().log_softmax(dim=-1)
    own_logprobs = logprobs.gather(-1, torch.tensor(token_ids, device=logits.device)[:, None])[:, 0].clamp(
        min=LEAST_LOGPROB
    )  # (T,)
    check_logits(own_logprobs)
    own = own_logprobs.tolist()
    if count == 0:
        return [TokenScore(token_id, logprob) for token_id, logprob in zip(token_ids, own, strict=True)]
    allowed = logprobs if banned is None else logprobs.index_fill(-1, banned, float("-inf"))
    top = allowed.topk(min(count, allowed.shape[-1]), dim=-1)  # (T, A)
    rows = zip(token_ids, own, top.indices.tolist(), top.values.tolist(), strict=True)
    return [TokenScore(token_id, logprob, *_possible(ids, values)) for token_id, logprob, ids, values in rows]


def _possible(ids: Sequence[int], values: Sequence[float]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the alternatives without the impossible ones, which are at the end."""
    count = sum(value > -math.inf for value in values)
    return tuple(ids[:count]), tuple(values[:count])


def token_name(tokenizer: Tokenizer, token_id: int) -> str:
    """Return a token as text. If it is not valid UTF-8 by itself, return its bytes in OpenAI's form, such as bytes:\\xe4\\xbd."""
    content = tokenizer.token_bytes(token_id)
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def scores_as_json(scores: Iterable[TokenScore], offsets: Iterable[int], tokenizer: Tokenizer) -> dict[str, list[Any]]:
    """Return scores as the `logprobs` of OpenAI's completions.

    Args:
        offsets: Start of each token's text, in characters.
    """
    result: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": list(offsets)}
    for score in scores:
        name = token_name(tokenizer, score.token_id)
        result["tokens"].append(name)
        result["token_logprobs"].append(score.logprob)
        if score.logprob is None:
            result["top_logprobs"].append(None)
            continue
        likely: dict[str, float] = {}
        for token_id, logprob in zip(score.likely_ids, score.likely_logprobs, strict=True):
            likely.setdefault(token_name(tokenizer, token_id), logprob)
        likely.setdefault(name, score.logprob)
        result["top_logprobs"].append(likely)
    return result

"""Find a model's most likely tokens at each position of the beginning of a text.

Shapes: n tokens, A alternatives, T context_length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from gpt_pretrain.evaluation.scoring import Scorer
from gpt_pretrain.evaluation.text_scores import EvaluationText
from gpt_pretrain.evaluation.windows import scored_windows
from gpt_pretrain.model.kernels.chunks import LOGITS_BYTES


@dataclass(frozen=True)
class TokenAlternatives:
    """Tokens of a text, each with the tokens that the model expected in its place.

    Args:
        token_ids: (n,).
        losses: Loss of each token in nats, (n,); NaN for a first token.
        likely_ids: The most likely tokens in each place, the likeliest first, (n, A).
        probabilities: Their probabilities, (n, A).
    """

    token_ids: np.ndarray
    losses: np.ndarray
    likely_ids: np.ndarray
    probabilities: np.ndarray


@torch.inference_mode()
def find_alternatives(scorer: Scorer, text: EvaluationText, *, max_tokens: int, count: int = 5) -> TokenAlternatives:
    """Return the first tokens of a text with the most likely ones. The model reads windows that do not overlap.

    Args:
        max_tokens: The most tokens to return.
        count: Alternatives of each token.
    """
    n_tokens, count = min(max_tokens, text.tokens.count), min(count, scorer.model.config.vocab_size)
    token_ids = text.tokens.read(0, n_tokens).astype(np.int64)
    losses = np.full(n_tokens, np.nan, dtype=np.float32)
    likely = np.zeros((n_tokens, count), dtype=np.int64)
    probabilities = np.zeros((n_tokens, count), dtype=np.float32)
    rows_at_a_time = max(1, LOGITS_BYTES["cpu"] // (4 * scorer.model.config.vocab_size))
    prefix = [text.boundaries.eos_id] if text.adds_prefix else []
    for begin, end in text.documents():
        if begin >= n_tokens:
            break
        sequence = np.array([*prefix, *token_ids[begin : min(end, n_tokens)]], dtype=np.int64)
        for window in scored_windows(len(sequence), context_length=scorer.context_length, stride=scorer.context_length):
            ids = torch.from_numpy(sequence[window.start : window.end - 1]).to(scorer.device)
            hidden = scorer.model.hidden_states(ids[None])[0, -window.n_scored :]
            first = window.end - window.n_scored
            for start in range(0, window.n_scored, rows_at_a_time):
                rows = scorer.model.logits(hidden[start : start + rows_at_a_time]).float().log_softmax(-1).cpu()
                targets = torch.from_numpy(sequence[first + start : first + start + len(rows)])
                span = slice(begin - len(prefix) + first + start, begin - len(prefix) + first + start + len(rows))
                top = rows.topk(count)
                losses[span] = -rows.gather(1, targets[:, None])[:, 0].numpy()
                likely[span], probabilities[span] = top.indices.numpy(), top.values.exp().numpy()
    return TokenAlternatives(token_ids, losses, likely, probabilities)

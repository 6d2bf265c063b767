"""Notice that another program's weights do not fit a text."""

from __future__ import annotations

import math

import torch

from gpt_pretrain.evaluation.loss import next_token_loss
from gpt_pretrain.model.language_model import LanguageModel
from gpt_pretrain.tokenizers.base import Tokenizer
from gpt_pretrain.tokenizers.splitting import encode_prompt

MIN_TOKENS = 8  # A few odd words say nothing about the weights.
MARGIN = 1.0  # nats per token


@torch.no_grad()
def unlikely_prompt(model: LanguageModel, tokenizer: Tokenizer, prompt: str) -> str | None:
    """Return a sentence if the loss on a prompt is far above guessing; None if it is not, or if the prompt is too short."""
    token_ids = encode_prompt(prompt, tokenizer)[: model.config.context_length]
    if len(token_ids) < MIN_TOKENS or max(token_ids) >= model.config.vocab_size:
        return None
    ids = torch.tensor([token_ids], device=model.device)
    loss = float(next_token_loss(model, ids[:, :-1], ids[:, 1:]))
    return unlikely_loss("The prompt", loss, vocab_size=model.config.vocab_size)


def unlikely_loss(text: str, loss: float, *, vocab_size: int, of_own_vocabulary: bool = False) -> str | None:
    """Return a sentence if the loss of loaded weights on a text is far above guessing, otherwise None.

    Args:
        text: A name for the text, to begin the sentence with.
        loss: The loss in nats per token.
        of_own_vocabulary: Whether the tokenizer came with the weights.
    """
    guess = math.log(vocab_size)
    if not loss > guess + MARGIN:
        return None
    tokenizer = "Probably they were trained with another tokenizer: name it with tokenizer=. Otherwise they are damaged, "
    cause = "They are damaged, " if of_own_vocabulary else tokenizer
    return (
        f"{text} has a loss of {loss:.1f} nats per token, while a uniform guess among all tokens gives {guess:.1f}: the weights "
        f"do not fit it. {cause}were trained on another kind of text, or their file does not state all of their architecture."
    )

"""Weights that do not fit the text that they are given."""

from __future__ import annotations

import torch

from gpt_pretrain.evaluation.unlikely_text import unlikely_prompt
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.gpt2 import GPTModel
from gpt_pretrain.tokenizers.build import build_tokenizer

PROMPT = "Every effort moves you"


def test_a_prompt_far_less_likely_than_a_guess_is_noticed() -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer("byte")
    config = GPTConfig(vocab_size=tokenizer.vocab_size, context_length=64, emb_dim=16, n_heads=2, n_layers=1)
    model = GPTModel(config).eval()
    assert unlikely_prompt(model, tokenizer, PROMPT) is None, "new weights guess"
    with torch.no_grad():
        model.tok_emb.weight.mul_(300)
    said = unlikely_prompt(model, tokenizer, PROMPT)
    assert said is not None
    assert "a uniform guess among all tokens gives 5.5: the weights do not fit it" in said
    assert unlikely_prompt(model, tokenizer, "odd") is None, "which is too short to tell"

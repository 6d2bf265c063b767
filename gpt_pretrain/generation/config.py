"""The architecture of a model and the way of sampling from it, as plain numbers that check themselves."""

from __future__ import annotations

from dataclasses import dataclass

from gpt_pretrain.errors import UserError


@dataclass(frozen=True)
class SamplerConfig:
    """How many tokens to generate, and how each is chosen.

    Args:
        max_new_tokens: tokens to add.
        temperature: 0 takes the likeliest token; otherwise logits are divided by it.
        top_k: keep the k likeliest tokens, and those level with the last of them; None keeps all.
        top_p: then keep the likeliest tokens that together reach this probability, in (0, 1]; None keeps all.

    Raises:
        UserError: naming every field that breaks a rule.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.max_new_tokens < 0:
            problems.append(f"max_new_tokens={self.max_new_tokens}: must be at least 0.")
        if not 0 <= self.temperature < float("inf"):
            problems.append(f"temperature={self.temperature}: must be at least 0, where 0 always takes the likeliest token.")
        if self.top_k is not None and self.top_k < 1:
            problems.append(f"top_k={self.top_k}: must be at least 1; leave it out (null) to keep all tokens.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            problems.append(f"top_p={self.top_p}: must be above 0 and at most 1; leave it out (null) to keep all tokens.")
        if problems:
            raise UserError(problems)

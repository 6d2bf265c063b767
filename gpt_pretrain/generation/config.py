"""The settings for sampling from a model, checked when built."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.shown_values import short_repr

MAX_STOPS, MAX_STOP_LENGTH = 16, 1000  # texts that end a continuation, and characters of each
MAX_LOGPROBS = 100  # alternatives of each token
LEAST_PENALTY, MOST_PENALTY = 0.01, 100.0  # of repetitions; beyond these, usual logits exceed float32
COUNTS, NUMBERS = ("max_new_tokens", "top_k"), ("temperature", "top_p", "min_p", "repetition_penalty", "window_step")
CAN_BE_NONE = ("top_k", "top_p", "min_p", "window_step")


@dataclass(frozen=True)
class SamplerConfig:
    """The number of tokens to generate and the way each is chosen.

    Args:
        max_new_tokens: Largest number of tokens to add.
        temperature: Divisor of the logits, at least 0. 0 always takes the most likely token.
        top_k: Keep only the k most likely tokens, and no more if others are as likely as the last one. None keeps all.
        top_p: Then keep only the most likely tokens that together reach this probability, in (0, 1]. None keeps all.
        min_p: Then keep only tokens with at least this fraction of the most likely one's probability, in [0, 1]. None keeps all.
        repetition_penalty: For all tokens in the text so far, including the prompt: divisor of positive logits, and factor of
            negative ones. 1 changes nothing. It acts before all other settings, even at a temperature of 0.
        window_step: Share of the model's context to drop at once, the oldest tokens first, when a text has filled it. None drops
            one token for each new one.

    Raises:
        UserError: If fields are invalid. It lists all of them.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    window_step: float | None = None

    def __post_init__(self) -> None:
        if wrong := [
            f"{name}={short_repr(value)}: must be a {noun}."
            for names, kind, noun in ((COUNTS, Integral, "whole number"), (NUMBERS, Real, "number"))
            for name in names
            if (value := getattr(self, name)) is not None or name not in CAN_BE_NONE
            if not isinstance(value, kind) or isinstance(value, bool)
        ]:
            raise UserError(wrong)
        problems = []
        if self.max_new_tokens < 0:
            problems.append(f"max_new_tokens={self.max_new_tokens}: must be at least 0.")
        if not 0 <= self.temperature < float("inf"):
            problems.append(
                f"temperature={self.temperature}: must be a finite number of at least 0; 0 always takes the most likely token."
            )
        if self.top_k is not None and self.top_k < 1:
            problems.append(f"top_k={self.top_k}: must be at least 1, or null to keep all tokens.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            problems.append(f"top_p={self.top_p}: must be above 0 and at most 1, or null to keep all tokens.")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            problems.append(f"min_p={self.min_p}: must be between 0 and 1, or null to keep all tokens.")
        if not LEAST_PENALTY <= self.repetition_penalty <= MOST_PENALTY:
            problems.append(
                f"repetition_penalty={self.repetition_penalty}: must be between {LEAST_PENALTY:g} and {MOST_PENALTY:g}; 1 "
                "changes nothing, and 1.2 is usual."
            )
        if self.window_step is not None and not 0 < self.window_step < 1:
            problems.append(
                f"window_step={self.window_step}: must be a share of the context above 0 and below 1, such as 0.25, or null to "
                "drop one token at a time."
            )
        if problems:
            raise UserError(problems)

    def kept_tokens(self, context_length: int) -> int:
        """Return the number of tokens that remain of a full window, including a new one; at most context_length."""
        if self.window_step is None:
            return context_length
        return max(1, context_length - max(1, round(self.window_step * context_length)))

    def unused_settings(self) -> str | None:
        """Return a sentence about settings without effect at a temperature of 0; None if there are none."""
        unused = [f"sampler.{name}={value}" for name in ("top_k", "top_p", "min_p") if (value := getattr(self, name)) is not None]
        if self.temperature > 0 or not unused:
            return None
        names = " and ".join(filter(None, (", ".join(unused[:-1]), unused[-1])))
        return (
            f"{names} {'has' if len(unused) == 1 else 'have'} no effect at sampler.temperature=0, which always "
            "takes the most likely token. Set a temperature above 0, such as sampler.temperature=0.7"
        )

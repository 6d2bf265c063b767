"""The settings for sampling from a model, checked when built."""

from __future__ import annotations

from dataclasses import dataclass

from gpt_pretrain.errors import UserError


@dataclass(frozen=True)
class SamplerConfig:
    """The number of tokens to generate and the way each is chosen.

    Args:
        max_new_tokens: Largest number of tokens to add.
        temperature: Divisor of the logits, at least 0. 0 always takes the most likely token.
        top_k: Keep only the k most likely tokens. None keeps all.
        top_p: Then keep only the most likely tokens that together reach this probability, in (0, 1]. None keeps all.

    Raises:
        UserError: If fields are invalid; it lists all of them.
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
            problems.append(
                f"temperature={self.temperature}: must be a finite number of at least 0; 0 always takes the most likely token."
            )
        if self.top_k is not None and self.top_k < 1:
            problems.append(f"top_k={self.top_k}: must be at least 1, or null to keep all tokens.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            problems.append(f"top_p={self.top_p}: must be above 0 and at most 1, or null to keep all tokens.")
        if problems:
            raise UserError(problems)

    def unused_settings(self) -> str | None:
        """Return a sentence about settings that have no effect together with a temperature of 0; None if there are none."""
        unused = [f"sampler.{name}={value}" for name in ("top_k", "top_p") if (value := getattr(self, name)) is not None]
        if self.temperature > 0 or not unused:
            return None
        return (
            f"{' and '.join(unused)} {'has' if len(unused) == 1 else 'have'} no effect at sampler.temperature=0, which always "
            "takes the most likely token. Set a temperature above 0, such as sampler.temperature=0.7"
        )

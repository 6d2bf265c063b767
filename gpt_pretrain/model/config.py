"""The architecture of a model and the way of sampling from it, as plain numbers that check themselves."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from gpt_pretrain.errors import UserError

GELUS = ("tanh", "none")


INITS = ("gpt2", "pytorch")


@dataclass(frozen=True)
class GPTConfig:
    """Everything that decides the shape and the starting weights of a `GPTModel`.

    Args:
        vocab_size: number of token ids; it follows from the tokenizer.
        context_length: longest window the model can read, in tokens.
        emb_dim: width of the residual stream; a multiple of n_heads.
        n_heads: attention heads per block.
        n_layers: transformer blocks.
        drop_rate: dropout probability on embeddings, attention weights and residual branches, in [0, 1).
        qkv_bias: whether the query, key and value projections have a bias.
        tie_embeddings: whether the output head is the token embedding.
        gelu_approximate: "tanh" (GPT-2's form) or "none" (the exact function, as nanoGPT has it).
        init: "gpt2" (normal, 0.02, residual projections scaled down) or "pytorch" (each layer's own default).

    Raises:
        UserError: naming every field that breaks a rule.
    """

    vocab_size: int
    context_length: int
    emb_dim: int
    n_heads: int
    n_layers: int
    drop_rate: float = 0.0
    qkv_bias: bool = False
    tie_embeddings: bool = True
    gelu_approximate: str = "tanh"
    init: str = "gpt2"

    def __post_init__(self) -> None:
        problems = [
            f"{name}={getattr(self, name)!r}: must be a whole number of at least 1."
            for name in ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers")
            if not _is_count(getattr(self, name))
        ]
        problems += [
            f"{name}={getattr(self, name)!r}: must be true or false."
            for name in ("qkv_bias", "tie_embeddings")
            if not isinstance(getattr(self, name), bool)
        ]
        if _is_count(self.n_heads) and _is_count(self.emb_dim) and self.emb_dim % self.n_heads:
            near = range(max(1, self.n_heads - 64), min(self.n_heads, self.emb_dim) + 65)
            fits = [n for n in near if self.emb_dim % n == 0] or [1]
            nearest = sorted(sorted(fits, key=lambda n: abs(n - self.n_heads))[:4])
            problems.append(
                f"n_heads={self.n_heads}: must divide emb_dim={self.emb_dim}, so that all heads have one size; "
                f"near it, {', '.join(map(str, nearest))} do."
            )
        if isinstance(self.drop_rate, bool) or not isinstance(self.drop_rate, int | float) or not 0 <= self.drop_rate < 1:
            problems.append(f"drop_rate={self.drop_rate!r}: must be at least 0 and below 1; GPT-2 used 0.1.")
        problems += [
            f"{name}={getattr(self, name)!r}: must be one of {', '.join(choices)}."
            for name, choices in (("gelu_approximate", GELUS), ("init", INITS))
            if getattr(self, name) not in choices
        ]
        if problems:
            raise UserError(problems)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.emb_dim // self.n_heads

    def to_dict(self) -> dict[str, Any]:
        """The fields as a plain dict, as a checkpoint stores them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: object) -> GPTConfig:
        """Rebuild an architecture from a checkpoint's plain dict.

        Raises:
            UserError: when fields are missing, unknown or invalid.
        """
        if not isinstance(fields, dict):
            raise UserError(f"The stored architecture is a {type(fields).__name__}, not a table of fields.")
        known = {field.name for field in dataclasses.fields(cls)}
        problems = [f"The stored architecture has an unknown field {name!r}." for name in sorted(map(str, fields.keys() - known))]
        problems += [f"The stored architecture lacks the field {name!r}." for name in sorted(known - fields.keys())]
        if problems:
            raise UserError(problems)
        return cls(**fields)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1

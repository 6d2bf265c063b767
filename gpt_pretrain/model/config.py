"""The architecture of a model as plain numbers, checked when built."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.shown_values import describe_value, short_repr

GELU_FORMS = ("tanh", "none")
CUSTOM_KIND = "custom"  # the user's own model; other fields mean nothing for it
KINDS = ("gpt2", "modern", CUSTOM_KIND)
INITIALIZATIONS = {"gpt2": ("gpt2", "pytorch"), "modern": ("modern",)}  # by kind
# Fields of GPT-2 that have a single value in the modern model.
MODERN_VALUES = {"qkv_bias": False, "tie_embeddings": False, "gelu_approximate": "tanh"}
MODERN_LOGIT_CAP = 15.0
# Fields that earlier versions lacked, with the values that have the same meaning.
ADDED_FIELDS: dict[str, Any] = {
    **{"kind": "gpt2", "n_kv_heads": None},
    **{"value_embeddings": False, "bigram_rows": 0},
}
MAX_UNKNOWN = 10  # Unknown fields to list.


@dataclass(frozen=True)
class GPTConfig:
    """The fields that determine the kind of a model, its shapes and its initial weights.

    Args:
        vocab_size: Number of token ids. It follows from the tokenizer.
        context_length: Longest window that the model can read, in tokens.
        emb_dim: Width of the residual stream; a multiple of n_heads.
        n_heads: Attention heads per block.
        n_layers: Number of transformer blocks.
        drop_rate: Dropout probability on embeddings, attention weights and residual branches, in [0, 1).
        qkv_bias: Add a bias to the query, key and value projections.
        tie_embeddings: Use the token embedding as the output head.
        gelu_approximate: "tanh" for GPT-2's form of GELU, "none" for the exact function, as in nanoGPT.
        init: "gpt2" for normal with std 0.02 and smaller residual projections, "pytorch" for each layer's default, "modern" for
            the modern model's initialization.
        kind: "gpt2" for `GPTModel`; "modern" for `ModernModel`, which has no biases, its own output head, and no GELU; "custom"
            for the user's own class, of which only vocab_size and context_length are known.
        n_kv_heads: Heads of keys and values. Groups of query heads share one. None means n_heads, as GPT-2 requires.
        value_embeddings: Give every other block of the modern model a table with what each token adds to attention's values.
        bigram_rows: Rows of a table that the modern model adds to the embedding of each token, by the hash of this token and the
            one before it; 0 for no such table.

    Raises:
        UserError: If fields are invalid. It lists all of them.
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
    kind: str = "gpt2"
    n_kv_heads: int | None = None
    value_embeddings: bool = False
    bigram_rows: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Integral) and not isinstance(value, int):  # a number of NumPy, which is no plain data
                object.__setattr__(self, field.name, int(value))
        problems = [
            f"{name}={short_repr(getattr(self, name))}: must be a whole number of at least 1."
            for name in ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers")
            if not _is_count(getattr(self, name))
        ]
        problems += [
            f"{name}={short_repr(getattr(self, name))}: must be true or false."
            for name in ("qkv_bias", "tie_embeddings", "value_embeddings")
            if not isinstance(getattr(self, name), bool)
        ]
        if _is_count(self.n_heads) and _is_count(self.emb_dim) and self.emb_dim % self.n_heads:
            problems.append(
                f"n_heads={self.n_heads} does not divide emb_dim={self.emb_dim}. Try {_nearby_heads(self.n_heads, self.emb_dim)}."
            )
        if isinstance(self.drop_rate, bool) or not isinstance(self.drop_rate, int | float) or not 0 <= self.drop_rate < 1:
            problems.append(f"drop_rate={short_repr(self.drop_rate)}: must be at least 0 and below 1; GPT-2 used 0.1.")
        problems += [
            f"{name}={short_repr(getattr(self, name))}: must be one of {', '.join(choices)}."
            for name, choices in (("gelu_approximate", GELU_FORMS), ("kind", KINDS))
            if getattr(self, name) not in choices
        ]
        if isinstance(self.bigram_rows, bool) or not isinstance(self.bigram_rows, int) or self.bigram_rows < 0:
            problems.append(f"bigram_rows={short_repr(self.bigram_rows)}: must be a whole number of at least 0; 0 adds no table.")
        problems += self._kind_problems() if self.kind in KINDS else []
        if problems:
            raise UserError(problems)

    def _kind_problems(self) -> list[str]:
        """List the values that this kind of model does not support."""
        problems: list[str] = []
        if self.kind == CUSTOM_KIND:
            return problems
        if self.init not in (known := INITIALIZATIONS[self.kind]):
            problems.append(f"init={short_repr(self.init)}: must be one of {', '.join(known)} with kind={self.kind}.")
        if self.kind == "gpt2":
            if self.n_kv_heads is not None:
                problems.append(f"n_kv_heads={short_repr(self.n_kv_heads)}: GPT-2 has n_heads of them. Leave it out.")
            problems += [
                f"{name}={short_repr(value)}: GPT-2 has no such table. Leave it out, or choose a modern model."
                for name, value in (("value_embeddings", self.value_embeddings), ("bigram_rows", self.bigram_rows))
                if value is True or _is_count(value)
            ]
            return problems
        problems += [
            f"{name}={short_repr(getattr(self, name))}: the modern model has no such option. Leave it out."
            for name, value in MODERN_VALUES.items()
            if type(found := getattr(self, name)) is not type(value) or found != value
        ]
        heads = self.n_kv_heads
        if heads is not None and not (_is_count(heads) and _is_count(self.n_heads) and self.n_heads % heads == 0):
            problems.append(
                f"n_kv_heads={short_repr(heads)}: must divide n_heads={short_repr(self.n_heads)}, or be null for as many."
            )
        if _is_count(self.n_heads) and _is_count(self.emb_dim) and self.emb_dim % self.n_heads == 0 and self.head_dim % 2:
            problems.append(
                f"n_heads={self.n_heads} makes heads of width {self.head_dim}, but rotary positions turn pairs of numbers: "
                "emb_dim / n_heads must be even."
            )
        return problems

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.emb_dim // self.n_heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def qkv_rows(self) -> tuple[int, int, int]:
        """Rows of the queries, keys and values in the matrix that computes all three."""
        return self.emb_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim

    @property
    def logit_cap(self) -> float | None:
        """Bound of the logits' size; None if there is none."""
        return MODERN_LOGIT_CAP if self.kind == "modern" else None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a plain dict for a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: object) -> GPTConfig:
        """Rebuild an architecture from the plain dict of a checkpoint.

        Raises:
            UserError: If fields are missing, unknown or invalid.
        """
        if not isinstance(fields, dict):
            raise UserError(f"The stored architecture is {describe_value(fields)}, not a table of fields.")
        fields = ADDED_FIELDS | fields
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(short_repr(name) for name in fields.keys() - known)[:MAX_UNKNOWN]
        problems = [f"The stored architecture has an unknown field {name}." for name in unknown]
        problems += [f"The stored architecture lacks the field {short_repr(name)}." for name in sorted(known - fields.keys())]
        if problems:
            raise UserError(problems)
        return cls(**fields)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _nearby_heads(n_heads: int, emb_dim: int) -> str:
    """List up to four divisors of emb_dim near n_heads."""
    candidates = range(max(1, n_heads - 64), min(n_heads, emb_dim) + 65)
    divisors = [n for n in candidates if emb_dim % n == 0] or [1]
    *others, last = map(str, sorted(sorted(divisors, key=lambda n: abs(n - n_heads))[:4]))
    return f"{', '.join(others)} or {last}" if others else last

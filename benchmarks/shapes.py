"""The models, batches and prompts to measure."""

from __future__ import annotations

from dataclasses import dataclass

from gpt_pretrain.model import costs
from gpt_pretrain.model.config import GPTConfig


@dataclass(frozen=True)
class Training:
    """A model and its batches.

    Args:
        model: The option of `train.py`'s group model. The other fields override it.
        tokenizer: The option of `train.py`'s group tokenizer.
        batch_size: Sequences, B.
        steps: Measured optimizer steps.
        warmup: Optimizer steps before the measured ones.
    """

    model: str
    tokenizer: str
    vocab_size: int
    emb_dim: int
    n_heads: int
    n_layers: int
    context_length: int
    batch_size: int
    drop_rate: float
    steps: int
    warmup: int

    @property
    def tokens(self) -> int:
        """Tokens per step."""
        return self.batch_size * self.context_length

    @property
    def product_flops(self) -> float:
        """Floating-point operations per step in products with weights: 6 for each weight and token."""
        return 6.0 * costs.matmul_parameters(self.config()) * self.tokens

    @property
    def flops(self) -> float:
        """Floating-point operations per step, including attention."""
        return costs.training_flops_per_token(self.config()) * self.tokens

    def config(self) -> GPTConfig:
        """Return the architecture."""
        return GPTConfig(
            vocab_size=self.vocab_size,
            context_length=self.context_length,
            emb_dim=self.emb_dim,
            n_heads=self.n_heads,
            n_layers=self.n_layers,
            drop_rate=self.drop_rate,
            qkv_bias=True,
        )


@dataclass(frozen=True)
class Decoding:
    """A batch of prompts of equal length for GPT-2 small with a context of 1,024, and the number of new tokens."""

    batch_size: int
    n_prompt: int
    n_tokens: int = 200


def gpt2_124m(*, drop_rate: float, batch_size: int = 2, context_length: int = 256, steps: int = 6, warmup: int = 3) -> Training:
    """Return the training of GPT-2 small."""
    return Training("gpt2_124m", "gpt2", 50257, 768, 12, 12, context_length, batch_size, drop_rate, steps, warmup)


TINY = Training("tiny", "byte", 257, 128, 4, 4, 64, 12, 0.0, steps=300, warmup=50)

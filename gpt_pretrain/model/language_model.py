"""The common part of all models: token ids in, logits out, through blocks and an output head.

Shapes: B batch, T time (new positions), S positions attended to, D emb_dim, V vocab_size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gpt_pretrain.errors import UserError
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.kernels.tied_weight import split_weight
from gpt_pretrain.model.kv_cache import KVCache
from gpt_pretrain.system.argument_types import check_type

TOKEN_IDS = "a tensor of int64, (B, T), such as torch.tensor([tokenizer.encode(text)])"


class LanguageModel(nn.Module):
    """A model that maps token ids to the logits of the next token at each position.

    A subclass adds `trf_blocks`, an `out_head` unless the embeddings are tied, and `hidden_states`.

    Attributes:
        activation_checkpointing: Keep only the input of each block in the forward pass, and recompute the rest in the backward
            pass.
    """

    trf_blocks: nn.ModuleList
    out_head: nn.Linear

    def __init__(self, config: GPTConfig) -> None:
        check_type("config", config, GPTConfig, "a GPTConfig, such as GPTConfig(vocab_size=50257, **vars(settings.model))")
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.tok_emb = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, config.emb_dim), freeze=False)  # type: ignore[no-untyped-call]

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return the logits of the next token at each position.

        Args:
            token_ids: int64, (B, T), T at most context_length.

        Returns:
            (B, T, V).

        Raises:
            UserError: If they are anything else, or have an id that is not in the vocabulary. A GPU reports it later.
        """
        check_token_ids(token_ids)
        return self.logits(self.hidden_states(token_ids))

    def hidden_states(
        self,
        token_ids: Tensor,
        *,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        embedding: Tensor | None = None,
    ) -> Tensor:
        """Return the output of the last norm, the input of the output head.

        Args:
            token_ids: int64, (B, T).
            cache: Keys and values of the positions before token_ids. This call appends the keys and values of token_ids.
            positions: Position of each token in its document, int64, (B, T), starting at 0 in each document. Tokens attend only
                to their own document. None treats each row as one document. Cannot be combined with a cache.
            mask: Only with positions: the tokens that each token attends to, bool, (B, 1, T, T); None means its own document.
            embedding: The weight of the token embedding from `split_tied_weight`; None means `tok_emb`'s own.

        Returns:
            (B, T, D).

        Raises:
            ValueError: If the positions exceed context_length.
        """
        raise NotImplementedError

    def logits(self, hidden: Tensor) -> Tensor:
        """Apply the output head: (..., D) -> (..., V)."""
        return self.cap_logits(F.linear(hidden, self.head_weight))

    def cap_logits(self, logits: Tensor) -> Tensor:
        """Bend the logits so that their size stays below the architecture's cap, if it has one."""
        cap = self.config.logit_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @property
    def head_weight(self) -> Tensor:
        """The weight of the output head, (V, D)."""
        return self.tok_emb.weight if self.config.tie_embeddings else self.out_head.weight

    def split_tied_weight(self) -> tuple[Tensor, Tensor] | None:
        """Return the weight for `hidden_states` and for the output head of a training step, if they share a sparse gradient."""
        if self.config.tie_embeddings and self.tok_emb.sparse and torch.is_grad_enabled():
            return split_weight(self.tok_emb.weight)
        return None

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        device: torch.device = self.tok_emb.weight.device
        return device

    def num_parameters(self) -> int:
        """Return the number of trainable parameters. A tied output head counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _embed(self, token_ids: Tensor, embedding: Tensor | None) -> Tensor:
        try:
            embedded: Tensor = self.tok_emb(token_ids) if embedding is None else F.embedding(token_ids, embedding, sparse=True)
        except IndexError as error:
            raise UserError(unknown_ids(token_ids, vocab_size=self.tok_emb.num_embeddings)) from error
        return embedded  # (B, T, D)

    def _positions_and_mask(
        self, token_ids: Tensor, cache: KVCache | None, positions: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the position of each token, (T,) or (B, T), and the mask. By default, the mask keeps documents apart."""
        if token_ids.ndim != 2:
            raise ValueError(f"token_ids has shape {tuple(token_ids.shape)}: it must be (B, T), such as token_ids[None].")
        T = token_ids.shape[1]
        if (context_length := self.config.context_length) < T:
            raise ValueError(f"token_ids reach position {T}, but the model's context_length is {context_length}.")
        if positions is not None:
            return positions, _document_mask(positions) if mask is None else mask
        return torch.arange(T, device=token_ids.device) if cache is None else cache.begin(T), None

    def _run_blocks(self, x: Tensor, *, cache: KVCache | None, **arguments: Any) -> Tensor:
        """Apply all blocks: (B, T, D) -> (B, T, D).

        Args:
            arguments: Further arguments of each block.
        """
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        for block in self.trf_blocks:
            x = checkpoint(block, x, use_reentrant=False, **arguments) if recompute else block(x, cache=cache, **arguments)
        return x


def check_token_ids(token_ids: Any) -> None:
    """Check that a model's input is a tensor of whole numbers. This looks at no value, so that it costs a GPU nothing.

    Raises:
        UserError: If it is anything else.
    """
    check_type("token_ids", token_ids, Tensor, TOKEN_IDS)
    if token_ids.dtype not in (torch.int64, torch.int32):
        raise UserError(f"token_ids has the type {token_ids.dtype}: it must be {TOKEN_IDS}.")


def unknown_ids(token_ids: Tensor, *, vocab_size: int) -> str:
    """Return the message about token ids of which some are not in the vocabulary."""
    return (
        f"token_ids has ids from {int(token_ids.min())} to {int(token_ids.max())}, and the model's are 0 to {vocab_size - 1}. "
        "Encode the text with the tokenizer that the model was trained with."
    )


def _document_mask(positions: Tensor) -> Tensor:
    """Return the keys that each query sees: the keys of its document up to its own position, bool, (B, 1, T, T)."""
    index = torch.arange(positions.shape[1], device=positions.device)
    distance = index[:, None] - index  # from query to key, (T, T)
    return ((distance >= 0) & (distance <= positions[:, :, None]))[:, None]

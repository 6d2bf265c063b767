"""Weights that fit their architecture, and the model and tokenizer that are built from them."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gpt_pretrain.checkpoints.formats.layouts import is_linear
from gpt_pretrain.checkpoints.serialization.tensor_files import StoredTensor, is_finite_tensor
from gpt_pretrain.checkpoints.weight_tokenizers import FindTokenizer, no_tokenizer
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.build import empty_model
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.language_model import LanguageModel
from gpt_pretrain.tokenizers.base import Tokenizer
from gpt_pretrain.tokenizers.build import build_tokenizer, same_tokenizer, tokenizer_by_size
from gpt_pretrain.tokenizers.fitting import TooManyTokensError, fit_to_rows

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weights:
    """Weights that fit their architecture and are still in their files.

    Args:
        name: The source, for messages.
        config: The architecture.
        parts: For each tensor of the model, the stored tensors that it consists of: one, three (query, key, value), or none if
            it is zero.
        transposed: Whether linear layers are stored as (in, out), as OpenAI did, and not as (out, in).
        content: The rest of the checkpoint, if this program wrote it.
        find_tokenizer: Returns the tokenizer that belongs to the weights, or None if there is none.
        has_tokenizer_files: Whether models in this format come with the files of their tokenizer.
    """

    name: str
    config: GPTConfig
    parts: dict[str, list[StoredTensor]]
    transposed: bool
    content: Mapping[str, Any]
    find_tokenizer: FindTokenizer = no_tokenizer
    has_tokenizer_files: bool = False

    @cached_property
    def own_tokenizer(self) -> Tokenizer | None:
        """The tokenizer that belongs to the weights, or None if there is none.

        Raises:
            UserError: If its files cannot be fetched or used, or it has more tokens than the weights have rows.
        """
        return None if self._found_tokenizer is None else self._fit(self._found_tokenizer)

    @cached_property
    def _found_tokenizer(self) -> Tokenizer | None:
        return self.find_tokenizer()

    @property
    def tokenizer(self) -> str | None:
        """The name of the weights' own tokenizer, or of a known one with as many tokens; None if there is neither."""
        own = self._found_tokenizer
        return tokenizer_by_size(self.config.vocab_size) if own is None else own.name

    @property
    def has_likely_tokenizer(self) -> bool:
        """True if the weights have a tokenizer, or if their format has none and the size of the vocabulary suggests one."""
        return self.own_tokenizer is not None or (not self.has_tokenizer_files and self.tokenizer is not None)

    def build(
        self,
        *,
        context_length: int | None = None,
        drop_rate: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> LanguageModel:
        """Return the model with these weights, in eval mode.

        Tensors are moved from the file to the model one by one. Those that fit unchanged stay mapped to the file, so that
        two models built from the same weights share them.

        Args:
            context_length: Tokens; keeps only the first position embeddings. None keeps all.
            drop_rate: Replaces the stored drop rate.
            device: None means the CPU.
            dtype: None means fp32.

        Raises:
            UserError: If the weights are not finite, or context_length exceeds the stored one.
        """
        config = self.config
        if context_length is not None:
            config = dataclasses.replace(config, context_length=context_length)
        if drop_rate is not None:
            config = dataclasses.replace(config, drop_rate=drop_rate)
        if config.context_length > self.config.context_length:
            raise UserError(
                f"model.context_length={config.context_length} exceeds the {self.config.context_length} positions of "
                f"{self.name}. The context can be shortened, not lengthened."
            )
        model = empty_model(config)
        model.load_state_dict(self._state_dict(model, device=device or "cpu", dtype=dtype or torch.float32), assign=True)
        return model.eval()

    def build_tokenizer(self, name: str | None = None) -> Tokenizer:
        """Build the named tokenizer. By default, build the weights' own, or a known one with as many tokens.

        Raises:
            UserError: If no tokenizer is known, or it does not fit the vocabulary.
        """
        if name is not None:
            return self._fit_named(name)
        if (own := self.own_tokenizer) is not None:
            return own
        size = self.config.vocab_size
        if (guess := tokenizer_by_size(size)) is None:
            raise UserError(
                f"{self.name} does not name a tokenizer, and no known tokenizer has {size:,} tokens. Give a folder or file "
                "with its vocabulary: tokenizer=FOLDER"
            )
        log.warning(
            "%s does not name a tokenizer. %s is used, because the vocabulary has %s tokens. If the text is garbled, give the "
            "right tokenizer: tokenizer=FOLDER",
            self.name,
            guess,
            f"{size:,}",
        )
        return build_tokenizer(guess)

    def _fit_named(self, name: str) -> Tokenizer:
        """Build the named tokenizer, and warn if the weights have another one.

        Raises:
            UserError: If it does not fit the vocabulary. If the weights have a tokenizer, the message recommends that.
        """
        try:
            fitted = self._fit(build_tokenizer(name))
        except TooManyTokensError as error:
            if self.own_tokenizer is None:
                raise
            raise UserError(f"{error.finding}. The weights bring their own tokenizer: leave out tokenizer={name}") from error
        with suppress(UserError):  # The user may name one because the weights' own cannot be used.
            if (own := self.own_tokenizer) is not None and not same_tokenizer(own, fitted):
                log.warning(
                    "%s brings the tokenizer %s, but tokenizer= names %s, whose ids stand for other text. Leave out tokenizer=, "
                    "unless the weights' own tokenizer is wrong.",
                    self.name,
                    own.name[:100],
                    fitted.name[:100],
                )
        return fitted

    def _fit(self, tokenizer: Tokenizer) -> Tokenizer:
        return fit_to_rows(tokenizer, self.config.vocab_size, origin=self.name)

    def _state_dict(self, model: LanguageModel, *, device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
        """Read the model's tensors, the largest first to keep the memory peak low."""
        state, not_finite = {}, []
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        for name in sorted(shapes, key=lambda name: -math.prod(shapes[name])):
            tensor = self._read(name) if self.parts[name] else torch.zeros(shapes[name])
            if name == "pos_emb.weight":
                tensor = tensor[: model.config.context_length]
            tensor = tensor.contiguous().to(device=device, dtype=dtype)
            if not is_finite_tensor(tensor):
                not_finite.append(name)
            # A view would keep its whole storage in memory, and save it with the model.
            is_view = tensor.untyped_storage().nbytes() > tensor.nbytes
            state[name] = tensor.clone() if is_view else tensor
        if not_finite:
            raise UserError(
                f"{self.name} holds NaN or infinity in {dtype}, in {len(not_finite)} of {len(state)} tensors: "
                f"{', '.join(sorted(not_finite)[:3])}{' ...' if len(not_finite) > 3 else ''}. "
                "Its training diverged, or the file is damaged."
            )
        return state

    def _read(self, name: str) -> Tensor:
        """Read a tensor of the model, with linear layers as (out, in)."""
        turned = self.transposed and is_linear(name)
        tensors = [part.read().T if turned else part.read() for part in self.parts[name]]
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)

"""Build the model of an architecture."""

from __future__ import annotations

import torch

from gpt_pretrain.errors import UserError
from gpt_pretrain.model.config import CUSTOM_KIND, GPTConfig
from gpt_pretrain.model.gpt2 import GPTModel
from gpt_pretrain.model.language_model import LanguageModel
from gpt_pretrain.model.modern import ModernModel

MODELS: dict[str, type[LanguageModel]] = {"gpt2": GPTModel, "modern": ModernModel}  # by kind


def new_model(config: GPTConfig) -> LanguageModel:
    """Return a model of this architecture with initial weights.

    Raises:
        UserError: If it is the user's own class.
    """
    if config.kind == CUSTOM_KIND:
        raise UserError(f"the config has kind={CUSTOM_KIND}, a class of your own. Build the model with this class.")
    return MODELS[config.kind](config)


def empty_model(config: GPTConfig) -> LanguageModel:
    """Return a model on the meta device. Its tensors have shapes but use no memory."""
    with torch.device("meta"):
        return new_model(config)

"""Build the model of an architecture."""

from __future__ import annotations

import torch

from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.gpt2 import GPTModel
from gpt_pretrain.model.language_model import LanguageModel
from gpt_pretrain.model.modern import ModernModel

MODELS: dict[str, type[LanguageModel]] = {"gpt2": GPTModel, "modern": ModernModel}  # by kind


def new_model(config: GPTConfig) -> LanguageModel:
    """Return a model of this architecture with initial weights."""
    return MODELS[config.kind](config)


def empty_model(config: GPTConfig) -> LanguageModel:
    """Return a model on the meta device. Its tensors have shapes but use no memory."""
    with torch.device("meta"):
        return new_model(config)

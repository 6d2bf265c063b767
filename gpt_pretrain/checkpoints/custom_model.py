"""Check the class of the user's own model before a run, and build it with the vocabulary and the context of the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from gpt_pretrain.config.custom_parts import TARGET
from gpt_pretrain.config.custom_targets import call_target, find_target, parameters_of
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.custom import CustomModel, try_module

GROUP = "model"


def check_model_class(fields: Mapping[str, Any]) -> int | None:
    """Check that the class of a model exists and derives from torch.nn.Module. Return its default context length, if any.

    Raises:
        UserError: If it does not.
    """
    name = fields[TARGET]
    target = find_target(name, setting=f"{GROUP}.{TARGET}")
    if isinstance(target, type) and not issubclass(target, nn.Module):
        raise UserError(f"{GROUP}.{TARGET}={name} is not a model: it must derive from torch.nn.Module.")
    default = getattr(parameters_of(target).get("context_length"), "default", None)
    return default if isinstance(default, int) and not isinstance(default, bool) and default >= 1 else None


def build_custom_model(fields: Mapping[str, Any], config: GPTConfig) -> CustomModel:
    """Build the user's model with initial weights, and try it on a few tokens.

    Args:
        fields: Its `_target_` and arguments. Parameters named `vocab_size` and `context_length` are filled in.
        config: The architecture, with the number of the tokenizer's tokens.

    Raises:
        UserError: If it cannot be built, or is not a causal language model for this vocabulary and context.
    """
    name = fields[TARGET]
    known = parameters_of(find_target(name, setting=f"{GROUP}.{TARGET}"))
    passed = {key: value for key, value in fields.items() if key != "context_length" or key in known}
    module = call_target(passed, setting=GROUP, vocab_size=config.vocab_size, context_length=config.context_length)
    if not isinstance(module, nn.Module):
        raise UserError(f"{GROUP}.{TARGET}={name} returned a {type(module).__name__}, not a torch.nn.Module.")
    n_logits = try_module(module, name=name, context_length=config.context_length, vocab_size=config.vocab_size)
    if n_logits != config.vocab_size and "vocab_size" in known and "vocab_size" not in fields:
        raise UserError(
            f"{GROUP}.{TARGET}={name} returns {n_logits:,} logits for a vocabulary of {config.vocab_size:,} tokens. To "
            f"round it up, state the larger size: {GROUP}.vocab_size={n_logits}"
        )
    return CustomModel(dataclasses.replace(config, vocab_size=n_logits), module)

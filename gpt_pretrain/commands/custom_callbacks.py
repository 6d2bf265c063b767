"""Build the user's own callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.callbacks import Callback

from gpt_pretrain.config.custom_targets import call_target
from gpt_pretrain.errors import UserError


def build_custom_callbacks(custom: Mapping[str, Any]) -> list[Callback]:
    """Build the callbacks in `callbacks.custom`.

    Args:
        custom: The `_target_` and arguments of each callback, by name.

    Raises:
        UserError: If a callback cannot be built, or is no Lightning callback.
    """
    callbacks = list[Callback]()
    for name, fields in custom.items():
        callback = call_target(fields, setting=f"callbacks.custom.{name}")
        if not isinstance(callback, Callback):
            kind = type(callback).__name__
            raise UserError(f"callbacks.custom.{name} is of the type {kind}, but must be a lightning.Callback.")
        callbacks.append(callback)
    return callbacks

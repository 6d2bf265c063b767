"""Build the user's own callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback

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
        try:
            callback = instantiate(fields)
        except Exception as error:  # Hydra wraps all exceptions of the class
            cause = error.__cause__ or error
            reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
            raise UserError(f"callbacks.custom.{name} cannot be built: {reason}") from error
        if not isinstance(callback, Callback):
            kind = type(callback).__name__
            raise UserError(f"callbacks.custom.{name} is of the type {kind}, but must be a lightning.Callback.")
        callbacks.append(callback)
    return callbacks

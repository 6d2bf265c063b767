"""Check the types of the arguments of public functions, which a notebook calls without a type checker."""

from __future__ import annotations

from typing import Any

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.shown_values import short_repr


def check_type(name: str, value: Any, kind: type | tuple[type, ...], takes: str) -> None:
    """Check that an argument has a type that the function takes.

    Args:
        takes: What it takes, for the message: "a text, such as 'gpt2'".

    Raises:
        UserError: If it has another type.
    """
    if not isinstance(value, kind):
        raise UserError(f"{name}={short_repr(value)}: must be {takes}.")

"""Check the types of arguments of public functions. A notebook calls these without a type checker."""

from __future__ import annotations

from typing import Any

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.shown_values import short_repr


def check_type(name: str, value: Any, kind: type | tuple[type, ...], takes: str) -> None:
    """Check that an argument has a type that the function accepts.

    Args:
        takes: A description of the accepted values, for the message: "a text, such as 'gpt2'".

    Raises:
        UserError: If it has another type.
    """
    if not isinstance(value, kind):
        raise UserError(f"{name}={short_repr(value)}: must be {takes}.")

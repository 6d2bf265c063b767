"""Write the overrides from a file in messages: as the user would type them, without secrets."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from itertools import chain
from typing import Any

from gpt_pretrain.config.overrides import quote_value
from gpt_pretrain.system.terminal import escape_line
from gpt_pretrain.system.urls import without_secrets

MAX_SHOWN = 300  # characters of an override in a message
UNSIGNED = "which is not signed with your key (another user, another machine or an earlier version of this program wrote it)"


def describe_override(key: str, value: Any) -> str:
    """Return the override that gives a setting a value, as the user would type it in a shell, on one line and without secrets.

    A `${...}` in the value is escaped, so that it stays a text wherever the override is typed.
    """
    if isinstance(value, str):
        text = without_secrets(value)
        text = quote_value(text) if "${" in text else text
    else:
        text = write_value(value)
    group, _, name = key.partition(".")
    before = f"logger={name.partition('.')[0]} " if group == "logger" else ""
    return before + quote_for_message(f"{key}={text}")


def write_value(value: Any) -> str:
    """Return a value in the form of an override. JSON will not do: it doubles backslashes, and Hydra does not undo that."""
    if isinstance(value, list):
        return f"[{', '.join(map(write_value, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {write_value(part)}' for name, part in value.items())}}}"
    return quote_value(without_secrets(value)) if isinstance(value, str) else json.dumps(value)


def quote_for_message(override: str) -> str:
    """Return an override for a message: quoted for a shell, on one line, and cut if it is long."""
    line = escape_line(override)
    return shlex.quote(line if len(line) <= MAX_SHOWN else f"{line[:MAX_SHOWN]}...")


def without_shell_quotes(override: str) -> str:
    """Remove the shell's quotes from an override that `describe_override` or `quote_for_message` returned."""
    return " ".join(shlex.split(override))


def explain_locations(overrides: Sequence[str], *, origin: str, own: bool = False) -> str:
    """Return the message that asks the user to type locations that a file names.

    Args:
        overrides: The overrides to type, as `describe_override` writes them.
        own: Whether the file has the user's signature. Then only secret parts are missing, which are never stored.
    """
    # `describe_override` writes logger=NAME before each setting of a logger, but it is typed only once.
    parts = [override.split(" ", 1) if override.startswith("logger=") else [override] for override in overrides]
    plain, typed = ", ".join(map(without_shell_quotes, overrides)), " ".join(dict.fromkeys(chain.from_iterable(parts)))
    come, it = ("comes", "it") if len(overrides) == 1 else ("come", "them")
    if own:
        whose = "Its" if len(overrides) == 1 else "Their"
        return f"{plain} {come} from {origin}. {whose} secret parts are never stored. Type {it} again in full: {typed}"
    such = "Such a setting is" if len(overrides) == 1 else "Such settings are"
    return f"{plain} {come} from {origin}, {UNSIGNED}. {such} used only if you type {it}. To use {it}, add: {typed}"

"""Explain typed paths that cannot work: URLs, Windows paths, and variables that no shell has replaced."""

from __future__ import annotations

import re
from pathlib import Path

from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.shell import quote_word
from gpt_pretrain.system.urls import is_url, without_secrets, wsl_path

VARIABLE = re.compile(r"\$(?:\w+|\{\w+\}|\(\w.*\))|%[A-Z_]+%")
SURE_VARIABLE = re.compile(r"\$[A-Z_][A-Z0-9_]+|%[A-Z_]+%|\$\(\w.*\)")  # not ${seed}, which refers to a setting


def explain_typed_path(path: str) -> str | None:
    """Return a reason why a path cannot exist on this machine, or None."""
    if (linux := wsl_path(path)) is not None:
        return f"This is a Windows path. In WSL, type {quote_word(linux)}"
    if (variable := VARIABLE.search(path)) is not None:
        return f"The shell has not replaced {variable[0]}, as within single quotation marks. Type its value."
    return None


def output_problem(setting: str, path: str) -> str | None:
    """Return the problem of a path to write to, or None. Existing files and folders may have any name.

    Args:
        setting: Its name, for the message.
    """
    folder = user_path(path)
    if folder.exists():
        return None
    if is_url(path):
        return f"{setting}={without_secrets(path)} is a URL, but a path on this machine is needed."
    existing = next((parent for parent in folder.parents if parent.exists()), Path())
    if wsl_path(path) is None and SURE_VARIABLE.search(str(folder.relative_to(existing))) is None:
        return None
    reason = explain_typed_path(path) or ""
    return f"{setting}={path}: {reason[:1].lower()}{reason[1:]}"

"""Explain typed paths that cannot work: URLs, Windows paths, variables that no shell has replaced, and mistyped names."""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from pathlib import Path

from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.shell import quote_word
from gpt_pretrain.system.urls import is_url, without_secrets, wsl_path

VARIABLE = re.compile(r"\$(?:\w+|\{\w+\}|\(\w.*\))|%[A-Z_]+%")
ENOUGH_ALIKE = 0.8
MOST_NAMES = 10_000  # names of a folder that are compared
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


def nearest_path(path: Path) -> str | None:
    """Return the file or folder with the most similar name in the same folder, or None if no name is similar.

    A link to a missing file does not count.
    """
    try:
        names = os.listdir(path.parent)[:MOST_NAMES]
    except OSError:
        return None
    by_form = {_plain(name): name for name in sorted(names, reverse=True)}
    found = difflib.get_close_matches(_plain(path.name), by_form, n=1, cutoff=ENOUGH_ALIKE)
    nearest = path.parent / by_form[found[0]] if found else None
    return str(nearest) if nearest is not None and nearest.exists() else None


def _plain(name: str) -> str:
    """Return a name in a form that ignores what is easily typed differently: case, quotation marks, spaces, composed letters."""
    return unicodedata.normalize("NFC", name).casefold().strip(" '\"")

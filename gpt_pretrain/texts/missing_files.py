"""Explain why there is no file at a path: it was typed in another form, or another file has nearly this name."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.shell import quote_word
from gpt_pretrain.system.typed_paths import explain_typed_path, nearest_path
from gpt_pretrain.system.urls import is_url
from gpt_pretrain.texts.finding import explain_empty_folder, match_files

FILE_URL = re.compile(r"file:(?://(?:localhost)?)?(/[^/].*)")


def explain_missing_file(name: str) -> str:
    """Return a sentence on the likely reason why there is no such file, or "" if none is found."""
    if name == "-":
        return "Standard input is not read: save the text to a file first."
    if (local := FILE_URL.fullmatch(name)) is not None:
        return f"Type the path of the file without file: {quote_word(unquote(local[1]))}"
    if (reason := explain_typed_path(name)) is not None:
        return reason
    if name.startswith("~") and user_path(name) == Path(name):
        return f"No home folder is known for {name.partition('/')[0]}."
    nearest = nearest_path(user_path(name))
    return f"Did you mean {quote_word(nearest)}?" if nearest else ""


def check_text_exists(pattern: str) -> None:
    """Check that data.path names a file, a folder or a URL, or matches a file. Nothing is opened.

    Raises:
        UserError: If it does not.
    """
    if not (is_url(pattern) or user_path(pattern).exists() or match_files(pattern)[0]):
        raise UserError(explain_no_files(pattern))


def explain_no_files(pattern: str) -> str:
    """Return the message about a data.path that names no file."""
    path = user_path(pattern)
    missing = "there is no such file or folder, and as a glob it matches no file"
    problem = explain_empty_folder(path) if path.is_dir() else missing
    # A resumed run has the path as it was typed, perhaps in another folder.
    hint = (
        "" if path.is_absolute() else f" Relative paths, also those of a resumed run, start at the current folder, {Path.cwd()}."
    )
    several = [one for one in pattern.split(",") if one]
    remedy = " Give a file, a folder, or a quoted glob."
    if len(several) > 1 and all(user_path(one).exists() for one in several):
        hint, remedy = "", " Several files are given as a folder or as a quoted glob; -m trains on one after another."
    elif not path.is_dir() and (explained := explain_missing_file(pattern)):
        hint, remedy = "", f" {explained}"
    return f"data.path={pattern}: {problem}.{hint}{remedy}"

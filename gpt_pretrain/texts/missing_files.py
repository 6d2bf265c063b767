"""Explain why there is no file at a path: it was typed in another form, or another file has nearly this name."""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from pathlib import Path
from urllib.parse import unquote

from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.shell import quote_word
from gpt_pretrain.system.typed_paths import explain_typed_path

FILE_URL = re.compile(r"file:(?://(?:localhost)?)?(/[^/].*)")
ENOUGH_ALIKE = 0.8
MOST_NAMES = 10_000  # names of a folder that are compared


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
    nearest = _nearest_file(user_path(name))
    return f"Did you mean {quote_word(nearest)}?" if nearest else ""


def _nearest_file(path: Path) -> str | None:
    """Return the file or folder with the most similar name in the same folder, or None if no name is similar."""
    try:
        names = os.listdir(path.parent)[:MOST_NAMES]
    except OSError:
        return None
    by_form = {_plain(name): name for name in sorted(names, reverse=True)}
    found = difflib.get_close_matches(_plain(path.name), by_form, n=1, cutoff=ENOUGH_ALIKE)
    return str(path.parent / by_form[found[0]]) if found else None


def _plain(name: str) -> str:
    """Return a name in a form that ignores what is easily typed differently: case, quotation marks, spaces, composed letters."""
    return unicodedata.normalize("NFC", name).casefold().strip(" '\"")

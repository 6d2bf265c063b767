"""Write words for the user to paste into a shell."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

SPECIAL_IN_DOUBLE_QUOTES = frozenset('"$`\\!\u201c\u201d\u201e')  # PowerShell takes curly quotation marks for straight ones
APOSTROPHES = frozenset("'\u2018\u2019\u201a\u201b")


def quote_word(word: str) -> str:
    """Quote a word so that bash, zsh, fish and PowerShell read it as one, if that is possible.

    Single quotes keep everything but themselves. A word with an apostrophe is put into double quotes, unless it also has a
    character that they do not protect; it is then quoted for the shells of POSIX.
    """
    quoted = shlex.quote(word)
    if not APOSTROPHES.isdisjoint(word) and SPECIAL_IN_DOUBLE_QUOTES.isdisjoint(word):
        return f'"{word}"'
    return quoted


def join_words(words: Iterable[str]) -> str:
    """Quote words and join them with spaces."""
    return " ".join(map(quote_word, words))

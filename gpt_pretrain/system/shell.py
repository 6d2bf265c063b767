"""Write words for the user to paste into a shell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

SPECIAL_IN_DOUBLE_QUOTES = frozenset('"$`\\!\u201c\u201d\u201e')  # In PowerShell, curly marks act like straight ones.
APOSTROPHES = frozenset("'\u2018\u2019\u201a\u201b")
EXPANDED_AT_START = ("=", "%")  # zsh expands =name to the path of a program, fish %self to its process id
ESCAPE_OF_FISH = re.compile(r"\\(?=['\\]|$)")  # fish knows two escapes in single quotes


def quote_word(word: str) -> str:
    """Quote a word so that bash, zsh, fish and PowerShell read it as a single word, if that is possible.

    Single quotes protect every character except themselves. A word with an apostrophe is put into double quotes. If it also has a
    character that double quotes do not protect, it is quoted for POSIX shells only.
    """
    if ESCAPE_OF_FISH.search(word):
        return "".join(f"\\{part}" if part in ("\\", "'") else f"'{part}'" for part in re.split(r"(['\\])", word) if part)
    quoted = f"'{word}'" if word.startswith(EXPANDED_AT_START) and "'" not in word else shlex.quote(word)
    if not APOSTROPHES.isdisjoint(word) and SPECIAL_IN_DOUBLE_QUOTES.isdisjoint(word):
        return f'"{word}"'
    return quoted


def join_words(words: Iterable[str]) -> str:
    """Quote words and join them with spaces."""
    return " ".join(map(quote_word, words))

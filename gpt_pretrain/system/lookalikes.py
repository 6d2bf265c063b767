"""Characters that cannot be seen, or that look like those of a keyboard, in words copied from a page or a document."""

from __future__ import annotations

import unicodedata

MINUS_SIGNS = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2212"), "-")


def plain_characters(text: str) -> str:
    """Return a text with the characters of a keyboard in place of those that look like them, and without invisible ones."""
    visible = "".join(letter for letter in text.translate(MINUS_SIGNS) if unicodedata.category(letter) != "Cf")
    return "".join(str(unicodedata.digit(letter, letter)) for letter in unicodedata.normalize("NFKC", visible))


def name_lookalikes(text: str) -> str:
    """Name the characters of a text that `plain_characters` would replace or leave out, such as "U+00A0, U+200B"."""
    return ", ".join(f"U+{ord(letter):04X}" for letter in dict.fromkeys(text) if plain_characters(letter) != letter)

"""Replace characters in copied words that are invisible, or that look like characters of a keyboard."""

from __future__ import annotations

import unicodedata

MINUS_SIGNS = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2212"), "-")


def plain_characters(text: str) -> str:
    """Replace lookalikes in a text by characters of a keyboard, and remove invisible characters."""
    visible = "".join(letter for letter in text.translate(MINUS_SIGNS) if unicodedata.category(letter) != "Cf")
    return "".join(str(unicodedata.digit(letter, letter)) for letter in unicodedata.normalize("NFKC", visible))


def name_lookalikes(text: str) -> str:
    """Name the characters of a text that `plain_characters` would replace or leave out, such as "U+00A0, U+200B"."""
    return ", ".join(f"U+{ord(letter):04X}" for letter in dict.fromkeys(text) if plain_characters(letter) != letter)

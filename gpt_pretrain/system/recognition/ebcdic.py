"""Guess which of the EBCDIC encodings, used on mainframes, a text has."""

from __future__ import annotations

from functools import cache

ASCII_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
COMMON = ASCII_LETTERS | frozenset("0123456789 .,;:!?[]'\"()-/\t\r\n\x85")
LATIN = "àáâãäåæçèéêëìíîïñòóôõöøùúûüýÿß"
# Each encoding with the letters that it is used for besides the common ones. Hebrew comes first, since its letters are Greek
# capitals in another encoding.
LETTERS: dict[str, str] = {
    "cp037": LATIN + LATIN.upper(),
    "cp500": LATIN + LATIN.upper(),
    "cp273": "äöüßÄÖÜ§",
    "cp1026": "ğışçöüâîûĞİŞÇÖÜÂÎÛ",
    "cp424": "".join(map(chr, range(0x5D0, 0x5EB))),
    "cp875": "".join(map(chr, range(0x386, 0x3CF))),
}
OTHER_SCRIPTS = ("cp424", "cp875")
BLANK = 0x40
ENOUGH, FEWEST_BLANKS = 0.9, 0.04  # shares of the characters of a text


def ebcdic_encoding(sample: bytes) -> str | None:
    """Return Python's name of the encoding if a text consists of words in EBCDIC, or None.

    In EBCDIC, blanks and nearly all letters have bytes outside ASCII. Only Hebrew letters have ASCII bytes.
    """
    if sample.count(BLANK) < max(FEWEST_BLANKS * len(sample), 1) or sample.count(BLANK) <= sample.count(b" "):
        return None
    scores = {name: _count_in_words(sample, name) for name in LETTERS}
    best = max(scores, key=scores.__getitem__)  # The first of equal ones.
    return best if scores[best] >= ENOUGH * len(sample) else None


def _count_in_words(sample: bytes, encoding: str) -> int:
    """Return the number of characters that belong to words if a text has this encoding."""
    n_common, n_letters = (_count(sample, encoding, characters) for characters in (COMMON, frozenset(LETTERS[encoding])))
    are_most = n_letters > _count(sample, encoding, ASCII_LETTERS)
    # In Latin script, most letters are ASCII letters, and single letters of another script do not occur among them.
    return n_common + n_letters * (are_most == (encoding in OTHER_SCRIPTS))


def _count(sample: bytes, encoding: str, characters: frozenset[str]) -> int:
    return len(sample) - len(sample.translate(None, _bytes_of(encoding, characters)))


@cache
def _bytes_of(encoding: str, characters: frozenset[str]) -> bytes:
    return bytes(byte for byte in range(256) if bytes([byte]).decode(encoding, errors="replace") in characters)

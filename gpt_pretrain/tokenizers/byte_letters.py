"""Bytes as GPT-2's vocabulary writes them: printable Latin-1 unchanged, the others as letters from U+0100 on.

Source: bytes_to_unicode in OpenAI's gpt-2 `src/encoder.py`.
"""

from __future__ import annotations

_PLAIN = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
_OTHERS = iter(range(256, 512))
LETTERS = [chr(byte if byte in _PLAIN else next(_OTHERS)) for byte in range(256)]
_BYTES = {letter: byte for byte, letter in enumerate(LETTERS)}


def to_letters(token: bytes) -> str:
    """Return bytes as letters."""
    return "".join(LETTERS[byte] for byte in token)


def from_letters(token: str) -> bytes:
    """Return the bytes that letters stand for; a character that stands for none keeps its UTF-8."""
    if all(letter in _BYTES for letter in token):
        return bytes(_BYTES[letter] for letter in token)
    return b"".join(bytes([_BYTES[letter]]) if letter in _BYTES else letter.encode(errors="replace") for letter in token)

"""Convert bytes to the letters of GPT-2's vocabulary: printable Latin-1 is unchanged, other bytes are letters from U+0100 on.

Source: bytes_to_unicode in OpenAI's gpt-2 `src/encoder.py`.
"""

from __future__ import annotations

_PLAIN = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
_OTHERS = iter(range(256, 512))
LETTERS = [chr(byte if byte in _PLAIN else next(_OTHERS)) for byte in range(256)]
_BYTES = {letter: byte for byte, letter in enumerate(LETTERS)}
# Each letter is mapped to the Latin-1 character of its byte. A character that is not a letter is mapped outside Latin-1.
_TO_LATIN1 = dict.fromkeys(range(256), "\uffff") | {ord(letter): chr(byte) for letter, byte in _BYTES.items()}


def to_letters(token: bytes) -> str:
    """Return bytes as letters."""
    return "".join(LETTERS[byte] for byte in token)


def from_letters(token: str) -> bytes:
    """Return the bytes of letters. A character that is not such a letter keeps its UTF-8."""
    try:
        return token.translate(_TO_LATIN1).encode("latin-1")
    except UnicodeEncodeError:
        return b"".join(bytes([_BYTES[letter]]) if letter in _BYTES else letter.encode(errors="replace") for letter in token)

"""Find the characters that the library gigatoken and a tokenizer put into different classes.

The two know different versions of Unicode. A block of characters is tried only once a text uses it. All of its characters are
tried, each before a contraction: after a letter or a number, the apostrophe is encoded differently than after other characters.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

# Chinese, Korean and Tangut characters, and areas that will never have letters. All libraries have agreed on these for years.
SETTLED = (
    *((0x3400, 0x4DB0), (0x4E00, 0x9F00), (0xAC00, 0xD7A4), (0xD800, 0xF900), (0x17000, 0x18700), (0x18800, 0x18B00)),
    *((0x20000, 0x2A6D0), (0x2A700, 0x2B700), (0x2B820, 0x2CE00), (0x2CEC0, 0x2EB00), (0x30000, 0x31300)),
)
LAST_LETTERS = 0x34000  # Beyond it, there are and will be no letters or numbers, except in areas for private use.
BLOCK = 1 << 12  # Characters. In a block, all characters of three bytes in UTF-8 have the same first byte, from 0xE0 on.
SEARCHED = 16  # A part with a disputed character is searched in this many smaller parts.
ASCII = bytes(range(0x80))
OF_THREE, OF_FOUR = 0xE0, 0xF0  # First bytes of the lowest characters of three bytes, and of characters from 0x10000 to 0x3FFFF.
SECOND_BYTE = re.compile(rb"\xf0(.)", re.DOTALL)  # 0x90 in the first block with characters of four bytes


class DisputedCharacters:
    """The characters on which an engine and a tokenizer disagree.

    Args:
        encodes_alike: Returns whether both give the same ids to a text.
    """

    def __init__(self, encodes_alike: Callable[[str], bool]) -> None:
        self._encodes_alike = encodes_alike
        self._disputed = np.zeros(LAST_LETTERS + 1, bool)  # the last entry is for all further ones
        self._unsettled = np.ones(LAST_LETTERS, bool)
        self._unsettled[:0x80] = False
        for first, end in SETTLED:
            self._unsettled[first:end] = False
        self._left = {number for number in range(LAST_LETTERS // BLOCK) if self._unsettled[number * BLOCK :][:BLOCK].any()}
        self._first_bytes = list[int]()  # First bytes of disputed characters. Most texts have none of them.

    def are_in(self, data: bytes) -> bool:
        """Return whether a text in UTF-8 contains a disputed character."""
        if data.isascii():
            return False
        characters = data.translate(None, ASCII)  # the rest is still valid UTF-8
        for number in self._left & self._blocks_of(characters):
            self._search(number)
        if not any(first in characters for first in self._first_bytes):
            return False
        codes = np.frombuffer(characters.decode().encode("utf-32-le"), "<u4")
        return bool(self._disputed.take(codes, mode="clip").any())

    def _blocks_of(self, characters: bytes) -> set[int]:
        """Return the blocks of some characters that have not been searched yet, and possibly the first block."""
        numbers = {number for number in self._left if number < 16 and OF_THREE + number in characters} | {0}
        if OF_FOUR in characters and max(self._left, default=0) >= 16:
            numbers |= {second[0] - 0x80 for second in set(SECOND_BYTE.findall(characters))}
        return numbers

    def _search(self, number: int) -> None:
        self._left.discard(number)
        self._mark(np.flatnonzero(self._unsettled[number * BLOCK :][:BLOCK]) + number * BLOCK)
        self._first_bytes = sorted({chr(code).encode()[0] for code in np.flatnonzero(self._disputed).tolist()})

    def _mark(self, codes: np.ndarray) -> None:
        """Mark the disputed ones among some characters. Parts with the same ids are not searched further."""
        # Each character is followed by an apostrophe, an s and a line feed.
        table = np.full((len(codes), 4), [0, 39, 115, 10], "<u4")
        table[:, 0] = codes
        if self._encodes_alike(table.tobytes().decode("utf-32-le")):
            return
        if len(codes) == 1:
            self._disputed[codes] = True
            return
        for part in np.array_split(codes, min(SEARCHED, len(codes))):
            self._mark(part)

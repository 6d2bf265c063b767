"""Find the characters that the library gigatoken and a tokenizer take for different classes, in the blocks that texts need.

The two know different versions of Unicode. Only a block that a text has a character of is tried: all of its characters, each
before a contraction. There, a letter or a number takes the apostrophe, and other characters do not.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

# Chinese, Korean and Tangut characters, and areas that will never have letters. All libraries have agreed on them for years.
SETTLED = (
    *((0x3400, 0x4DB0), (0x4E00, 0x9F00), (0xAC00, 0xD7A4), (0xD800, 0xF900), (0x17000, 0x18700), (0x18800, 0x18B00)),
    *((0x20000, 0x2A6D0), (0x2A700, 0x2B700), (0x2B820, 0x2CE00), (0x2CEC0, 0x2EB00), (0x30000, 0x31300)),
)
LAST_LETTERS = 0x34000  # No letters or numbers follow, nor are any planned, except in areas for private use.
BLOCK = 1 << 12  # Characters. Those of a block that take three bytes in UTF-8 begin with the same byte, 0xE0 for the first block.
SEARCHED = 16  # Parts of a block with a disputed character that are searched further.
ASCII = bytes(range(0x80))
OF_THREE, OF_FOUR = 0xE0, 0xF0  # The first byte of a character: of three bytes with the lowest code, of four bytes below 0x40000.
SECOND_BYTE = re.compile(rb"\xf0(.)", re.DOTALL)  # 0x90 for the block after the last one with characters of three bytes


class DisputedCharacters:
    """The characters on which an engine and a tokenizer disagree.

    Args:
        encodes_alike: Returns whether both give a text the same ids.
    """

    def __init__(self, encodes_alike: Callable[[str], bool]) -> None:
        self._encodes_alike = encodes_alike
        self._disputed = np.zeros(LAST_LETTERS + 1, bool)  # the last stands for all further ones
        self._unsettled = np.ones(LAST_LETTERS, bool)
        self._unsettled[:0x80] = False
        for first, end in SETTLED:
            self._unsettled[first:end] = False
        self._left = {number for number in range(LAST_LETTERS // BLOCK) if self._unsettled[number * BLOCK :][:BLOCK].any()}
        self._first_bytes = list[int]()  # Of disputed characters; most texts have none of these bytes.

    def are_in(self, data: bytes) -> bool:
        """Return whether a text in UTF-8 has one of them."""
        if data.isascii():
            return False
        characters = data.translate(None, ASCII)  # the others, which are UTF-8 all the same
        for number in self._left & self._blocks_of(characters):
            self._search(number)
        if not any(first in characters for first in self._first_bytes):
            return False
        codes = np.frombuffer(characters.decode().encode("utf-32-le"), "<u4")
        return bool(self._disputed.take(codes, mode="clip").any())

    def _blocks_of(self, characters: bytes) -> set[int]:
        """Return the blocks of some characters, among those that have not been searched, and perhaps the first one."""
        numbers = {number for number in self._left if number < 16 and OF_THREE + number in characters} | {0}
        if OF_FOUR in characters and max(self._left, default=0) >= 16:
            numbers |= {second[0] - 0x80 for second in set(SECOND_BYTE.findall(characters))}
        return numbers

    def _search(self, number: int) -> None:
        self._left.discard(number)
        self._mark(np.flatnonzero(self._unsettled[number * BLOCK :][:BLOCK]) + number * BLOCK)
        self._first_bytes = sorted({chr(code).encode()[0] for code in np.flatnonzero(self._disputed).tolist()})

    def _mark(self, codes: np.ndarray) -> None:
        """Mark the disputed ones among some characters; parts that give the same ids are not searched further."""
        # The code of each character, and those of an apostrophe, an s and a line feed.
        table = np.full((len(codes), 4), [0, 39, 115, 10], "<u4")
        table[:, 0] = codes
        if self._encodes_alike(table.tobytes().decode("utf-32-le")):
            return
        if len(codes) == 1:
            self._disputed[codes] = True
            return
        for part in np.array_split(codes, min(SEARCHED, len(codes))):
            self._mark(part)

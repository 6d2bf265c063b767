"""Recognize the encoding of a text by its first bytes: by a byte order mark, or by the characters that they would mean."""

from __future__ import annotations

import codecs
import functools
import itertools
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gpt_pretrain.system.formatting import format_count, format_rounded
from gpt_pretrain.system.recognition import languages

# UTF-32's mark begins with UTF-16's mark.
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")  # In this order: UTF-32 is also valid UTF-16 with many NULs.
# NUL and the control characters, without tab, line feed, vertical tab, form feed and carriage return.
CONTROLS = bytes(code for code in range(32) if code not in b"\t\n\v\f\r") + b"\x7f"
MANY_CONTROLS = 0.05  # With a larger share in the first bytes, a text has another encoding, or is not a text.
MANY_IN_TEXT = 0.001  # A larger share of them is worth a warning.
MANY_MARKS = 1e-6  # Likewise for byte order marks, by bytes. A model does not learn the few that a large corpus of web pages has.
LEAST_BLOCK_NUMBERS = 0.4  # With a smaller share of control characters, 7-bit bytes without 0 are not UTF-16.
# Ranges of characters that occur in a text of one script, besides ASCII, Latin-1 and punctuation.
LATIN, CHINESE = ((0x0100, 0x02FF), (0x1E00, 0x1EFF)), ((0x3040, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))
SCRIPTS = (
    *(LATIN, ((0x0370, 0x03FF), (0x1F00, 0x1FFF)), ((0x0400, 0x052F),), ((0x0530, 0x058F),), ((0x0590, 0x05FF),)),
    *(((0x0600, 0x077F),), *(((start, start + 0x7F),) for start in range(0x0900, 0x0F00, 0x80)), ((0x0F00, 0x0FFF),)),
    *(((0x1000, 0x109F),), ((0x10A0, 0x10FF),), ((0x1200, 0x139F),), ((0x13A0, 0x13FF),), ((0x1780, 0x17FF),)),
    *(((0x1800, 0x18AF),), CHINESE, ((0xAC00, 0xD7A3),), ((0x1D400, 0x1D7FF),)),
)
COMMON = (
    *((0x0020, 0x007E), (0x00A0, 0x00FF), (0x2000, 0x2BFF), (0x3000, 0x303F), (0xFE00, 0xFE0F), (0xFF00, 0xFFEF)),
    *((0x1F000, 0x1FAFF), (0x0009, 0x000A), (0x000C, 0x000D)),
)
ENOUGH = 0.95  # Share of the characters that belong to one script or are common to all.
# In a text of several scripts, the share of neighboring characters of the same script. Common characters do not count.
ENOUGH_TOGETHER, FEW = 0.9, 0.2
# Line ends, spaces and full stops. Text in 8-bit encodings that is read as UTF-16 contains none of them.
TELLING, ENOUGH_TELLING = (*"\n\r ", *"\u3000\u3001\u3002\uff0c\uff01\uff1f"), 0.005
SAMPLE = 1 << 14  # Characters to examine.
# Scripts that are often written without spaces: Thai, Lao, Tibetan, Burmese and Khmer; Chinese with Japanese, and Korean.
SPACELESS = [index for index, ranges in enumerate(SCRIPTS) if ranges[0][0] in (0x0E00, 0x0E80, 0x0F00, 0x1000, 0x1780)]
IDEOGRAPHS = [index for index, ranges in enumerate(SCRIPTS) if ranges[0][0] in (0x3040, 0xAC00)]
# Characters that make up a third of a Chinese, Japanese or Korean text. In other bytes that are read as such a text, they are
# rare.
FREQUENT = frozenset("".join(languages.FREQUENT.values()))
ENOUGH_FREQUENT = 0.05
# Such a text has at least this share of control characters among its bytes, while a text in an 8-bit encoding has none. Or it has
# at least this share of kana, which all have the same first byte.
LEAST_CONTROLS, ENOUGH_KANA = 0.01, 0.3
LEAST_BEFORE_NULS = 256  # Bytes of a UTF-16 text before a padding of NULs.
# Text of one byte per character, as a program that appends UTF-16 to it leaves before it. In UTF-16, so many bytes in a row are
# hardly ever all letters, digits and spaces.
NARROW = re.compile(rb"[\t\n\r -~]{64}")
PAIRED = re.compile(rb"(?:[\t\n\r -~]\0){32}|(?:\0[\t\n\r -~]){32}")
SEPARATING = 0.25  # A text has at most this share of NULs between its parts.


@dataclass(frozen=True)
class TextEncoding:
    """The encoding of a text.

    Args:
        name: Python's name of the encoding.
        has_mark: Whether the text begins with a byte order mark.
    """

    name: str
    has_mark: bool = False


def detect_encoding(head: bytes) -> TextEncoding | None:
    """Return the encoding of a text by its first bytes, or None if they are not text.

    A text with invalid bytes but few control characters counts as UTF-8. The code that reads it then reports the first invalid
    byte. A text that is padded with NULs or divided by them also counts as UTF-8.
    """
    for mark, name in MARKS:
        if head.startswith(mark):
            return TextEncoding(name, has_mark=True)
    if control_share(head) <= MANY_CONTROLS and begins_as_utf8(head):
        return TextEncoding("utf-8")
    wide = next((TextEncoding(name) for name in WIDE if _is_text_in(head, name)), None)
    is_text = control_share(head) <= MANY_CONTROLS or _has_only_nuls_besides_text(head)
    return TextEncoding("utf-8") if wide is None and is_text else wide


def count_controls(data: bytes) -> int:
    """Return the number of NUL and control characters in UTF-8 text."""
    return len(data) - len(data.translate(None, CONTROLS))


def control_share(data: bytes) -> float:
    """Return the share of NUL and control characters, without those used in terminals and between JSON records."""
    return (count_controls(data) - data.count(b"\x1b") - data.count(b"\b") - data.count(b"\x1e{")) / max(len(data), 1)


def begins_as_utf8(head: bytes) -> bool:
    """Return whether the first bytes of a text are UTF-8. The last character may be incomplete."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def _is_text_in(head: bytes, encoding: str) -> bool:
    """Return whether the characters of the first bytes, if they are in this encoding, look like text.

    They look like text if almost all are common characters or belong to one script. Several scripts are possible if they do not
    change within a word. Numbers, such as token ids, would be characters of random scripts.
    """
    if NARROW.search(head) is not None:
        return False
    # If no byte of UTF-16 is 0 or above 127, every second one is the number of a script's block: for Thai the control byte 14.
    if head.isascii() and b"\0" not in head and control_share(head) < LEAST_BLOCK_NUMBERS:
        return False
    filled = head.rstrip(b"\0")
    head = filled if len(filled) >= LEAST_BEFORE_NULS else head
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)[:SAMPLE]
    except UnicodeDecodeError:
        return False
    codes, total = Counter(text), len(text)
    scripts = {character: script_index(ord(character)) for character in codes}
    counts = Counter[int | None]()
    for character, count in codes.items():
        counts[scripts[character]] += count
    n_telling = sum(codes[character] for character in TELLING)
    if n_telling < max(ENOUGH_TELLING * total, 1) and not _is_spaceless(head, codes, counts):
        return False
    in_scripts = counts.total() - counts[None] - counts[-1]
    largest = max((count for script, count in counts.items() if script not in (None, -1)), default=0)
    if counts[-1] + largest >= ENOUGH * total:
        return True
    if counts[-1] + in_scripts < ENOUGH * total:
        return False
    pairs = [(left, right) for left, right in itertools.pairwise(map(scripts.__getitem__, text)) if left != -1 != right]
    return sum(left == right for left, right in pairs) >= ENOUGH_TOGETHER * len(pairs) if pairs else in_scripts <= FEW * total


def _is_spaceless(head: bytes, codes: Counter[str], counts: Counter[int | None]) -> bool:
    """Return whether a text without spaces is in a script that needs none.

    Args:
        head: The bytes of the text.
        codes: The number of occurrences of each character.
        counts: The number of characters of each script.
    """
    script, count = counts.most_common(1)[0] if counts else (None, 0)
    if script not in (*SPACELESS, *IDEOGRAPHS) or count < ENOUGH * ENOUGH * counts.total():
        return False
    if script not in IDEOGRAPHS:  # These scripts are so small that other bytes rarely all fall into one of them.
        return True
    n_kana = sum(number for character, number in codes.items() if "\u3040" <= character <= "\u30ff")
    if control_share(head) < LEAST_CONTROLS and n_kana < ENOUGH_KANA * counts.total():
        return False
    return sum(codes[character] for character in FREQUENT) >= ENOUGH_FREQUENT * counts.total()


def _has_only_nuls_besides_text(head: bytes) -> bool:
    """Return whether bytes are UTF-8 text of at least two words, except for NULs before, after or singly within it."""
    text = head.strip(b"\0")
    n_nuls = text.count(b"\0")
    if b"\0\0" in text or n_nuls > SEPARATING * len(text) or (text.isascii() and len(re.split(rb"[\0\s]", text, maxsplit=1)) < 2):
        return False
    return control_share(text.replace(b"\0", b"")) <= MANY_IN_TEXT and begins_as_utf8(text)


def is_partly_utf_16(head: bytes) -> bool:
    """Return whether the first bytes have both text of one byte per character and text in UTF-16."""
    return NARROW.search(head) is not None and PAIRED.search(head) is not None


def script_index(code: int) -> int | None:
    """Return the index of a character's script; -1 for a character common to all scripts, and None for others."""
    starts, scripts = _script_table()
    return scripts[bisect_right(starts, code) - 1]


@functools.cache
def _script_table() -> tuple[list[int], list[int | None]]:
    """Return the first character of each range, in ascending order, and the script of the range."""
    scripts = [(-1, COMMON), *enumerate(SCRIPTS)]
    starts = sorted({0, *(code for _, ranges in scripts for first, last in ranges for code in (first, last + 1))})

    def script_of(code: int) -> int | None:
        return next((index for index, ranges in scripts if any(first <= code <= last for first, last in ranges)), None)

    return starts, list(map(script_of, starts))


def to_utf8(blocks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """Convert text to UTF-8, without a byte order mark.

    Raises:
        UnicodeDecodeError: If the text is damaged.
    """
    decoder = codecs.getincrementaldecoder(encoding)()
    is_start = True
    for block in itertools.chain(blocks, [None]):
        text = decoder.decode(block or b"", final=block is None)
        if text:
            yield (text.removeprefix("\ufeff") if is_start else text).encode()
            is_start = False


class ControlCount:
    """Count NUL and control characters in a text, of which a normal text has hardly any, and byte order marks."""

    def __init__(self, total: int = 0, controls: int = 0, nuls: int = 0, marks: int = 0) -> None:
        self.total, self.controls, self.nuls, self.marks = total, controls, nuls, marks

    def add(self, data: bytes) -> None:
        """Count the NUL and control characters and the byte order marks in UTF-8 text."""
        self.total += len(data)
        self.controls += count_controls(data)
        self.nuls += data.count(b"\0")
        self.marks += data.count(codecs.BOM_UTF8)

    def warnings(self) -> list[str]:
        """Return a warning for each kind that the model should not learn. The mark that begins a file is not counted."""
        marks = (
            f"The text has {format_count(self.marks, 'byte order mark')} (U+FEFF) after its beginning, as in files that were "
            "joined with cat. Models trained on it write them. To delete them from plain text: "
            "perl -pe 's/\\xef\\xbb\\xbf//g' FILE > new.txt"
        )
        return [self.described()] * self.are_many + [marks] * (self.marks > MANY_MARKS * self.total)

    @property
    def are_many(self) -> bool:
        """Return whether there are more than in a normal text."""
        return self.controls > MANY_IN_TEXT * self.total

    def described(self) -> str:
        """Return a warning that names the likely cause."""
        share, name = 100 * self.controls / max(self.total, 1), "NUL" if self.nuls > self.controls / 2 else "control characters"
        cause = "a file that was never filled, text in UTF-16, or a binary file"
        cause = cause if name == "NUL" else "a binary file, or the colors of a terminal"
        remedy = " To delete them: tr -d '\\000' < FILE > new.txt" if name == "NUL" else ""
        return f"{format_rounded(share)}% of the text is {name}, as in {cause}. The model will learn to write them.{remedy}"


def is_blank(text: str) -> bool:
    """Return whether a text is empty or consists of white space."""
    return not text or text.isspace()

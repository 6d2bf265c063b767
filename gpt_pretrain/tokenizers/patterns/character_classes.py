"""Find the common characters of the classes of a regular expression."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from gpt_pretrain.tokenizers.patterns.syntax import ANY, ESCAPE, CharacterClass, UnknownSyntaxError

# Some escapes with Oniguruma's meaning, written for the package regex. To regex itself, they mean a little more or less.
MEANINGS = {
    "s": r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000",
    "w": r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}",
    "d": r"\p{Nd}",
    "h": "0-9a-fA-F",
    "v": r"\x0b",
    "e": r"\x1b",
}
CODE = re.compile(r"\\(?:x\{([0-9A-Fa-f]{1,6})\}|[xu]([0-9A-Fa-f]{1,4}))")
# Only one of the two programs knows these.
UNCERTAIN = re.compile(r"--|\|\||~~|\[:|\\[oO]")
MARK = "\ue000"  # a character without a meaning
MAX_CLASSES = 300  # Each takes 3 ms.
LARGE_SCRIPTS, STEP = r"\p{Han}\p{Hangul}", 64
LAST_LETTER, LAST_CODE = 0x20000, 0x10FFFF  # After LAST_LETTER, there are Chinese characters and a few signs.


def class_masks(classes: Sequence[CharacterClass]) -> list[int]:
    """Return a set of bits for each class. Two sets share a bit if their classes share a character.

    Raises:
        UnknownSyntaxError: If there are too many classes.
    """
    distinct = list(dict.fromkeys(classes))
    if len(distinct) > MAX_CLASSES:
        raise UnknownSyntaxError(f"it has more than {MAX_CLASSES} different characters")
    known = _known_characters()
    characters = known + "".join(sorted(_named_characters(distinct).difference(known, MARK)))
    rows = np.stack([_members(character_class, characters) for character_class in distinct])
    # Characters in the same classes share a bit.
    _, positions = np.unique(np.packbits(rows, axis=0), axis=1, return_index=True)
    masks = [sum(1 << bit for bit in np.flatnonzero(row).tolist()) for row in rows[:, positions]]
    by_class = dict(zip(distinct, masks, strict=True))
    return [by_class[character_class] for character_class in classes]


def _members(character_class: CharacterClass, characters: str) -> np.ndarray:
    """Return the characters that are in a class, out of some. If that is uncertain, return all of them."""
    import regex

    everything = np.ones(len(characters), bool)
    text = character_class.text
    if text == ANY or UNCERTAIN.search(text):
        return everything
    is_single = len(text) == 1
    translated = regex.escape(text) if is_single else ESCAPE.sub(lambda match: _translate(match, is_class=text[0] == "["), text)
    try:
        compiled = regex.compile(translated, regex.V1 | (regex.IGNORECASE if character_class.ignores_case else 0))
    except (regex.error, RecursionError, OverflowError, ValueError):
        return everything
    marked = compiled.sub(MARK, characters)
    if len(marked) != len(characters):
        return everything
    members: np.ndarray = np.frombuffer(marked.encode("utf-32-le"), np.uint32) == ord(MARK)
    return members


def _translate(match: re.Match[str], *, is_class: bool) -> str:
    """Return an escape in the syntax of the package regex."""
    letter = match.group()[1]
    if (code := CODE.fullmatch(match.group())) is not None:
        return f"\\U{min(int(code[1] or code[2], 16), LAST_CODE):08X}"
    if letter.lower() not in MEANINGS or len(match.group()) > 2:
        return match.group()
    if letter in MEANINGS:
        return MEANINGS[letter] if is_class else f"[{MEANINGS[letter]}]"
    return f"[^{MEANINGS[letter.lower()]}]" if letter.lower() in "swdh" else match.group()


def _named_characters(classes: Iterable[CharacterClass]) -> set[str]:
    """Return the characters written in classes, and their neighbors. Ranges begin or end between the two."""
    codes = set[int]()
    for character_class in classes:
        codes |= {ord(char) for char in character_class.text}
        codes |= {int(code[1] or code[2], 16) for code in CODE.finditer(character_class.text)}
    near = {code + step for code in codes for step in (-1, 0, 1)}
    found = {chr(code) for code in near if 0 <= code <= LAST_CODE and not 0xD800 <= code < 0xE000}
    return found | {other for char in found for other in (char.upper(), char.lower()) if len(other) == 1}


@lru_cache(maxsize=1)
def _known_characters() -> str:
    """Return all characters of small scripts, and some characters of large scripts and of unused areas."""
    import regex

    codes = [*range(0xD800), *range(ord(MARK) + 1, LAST_LETTER), *range(LAST_LETTER, LAST_CODE, 4096), *range(0xE0000, 0xE0200)]
    text = "".join(map(chr, codes))
    small = regex.findall(rf"[^\p{{Cn}}\p{{Co}}{LARGE_SCRIPTS}]", text)
    large = regex.findall(rf"[\p{{Cn}}\p{{Co}}{LARGE_SCRIPTS}]", text)
    return "".join(small + large[::STEP])

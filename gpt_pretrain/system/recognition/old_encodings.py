"""Guess the old encoding of a text that is not in Unicode, by the letters and the punctuation that it would have."""

from __future__ import annotations

import codecs
import functools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from gpt_pretrain.system.recognition.conversion import OF_SHAPES
from gpt_pretrain.system.recognition.ebcdic import ebcdic_encoding
from gpt_pretrain.system.recognition.languages import ALPHABETS, FREQUENT

# Encodings of one byte per character, the most usual ones first.
SINGLE_BYTE = (
    *("cp1252", "iso8859_15", "cp1251", "cp1250", "iso8859_2", "koi8_r", "cp1253", "iso8859_7", "cp1254", "cp1257", "cp1255"),
    *("cp1256", "mac_roman", "cp850", "cp852", "cp866", "mac_latin2", "koi8_u", "cp874", "iso8859_6", "cp1258", "mac_cyrillic"),
    *("iso8859_5", "mac_greek", "cp737", "cp857", "iso8859_13", "cp862", "cp775", "cp864", "iso8859_3", "iso8859_14"),
)
# Encodings with characters of several bytes, and their languages.
SEVERAL_BYTES = {
    **{"cp932": "Japanese", "gb18030": "Chinese", "euc_jp": "Japanese", "cp949": "Korean"},
    **dict.fromkeys(("cp950", "big5hkscs"), "Traditional Chinese"),
}
# Logarithms of the probability of a character beyond ASCII: one that a language does not have, punctuation, punctuation where it
# belongs, and a mistake such as a capital within a word. The last one is one of 5,000 characters of an Asian language.
FOREIGN, PUNCTUATION, PLACED, MISTAKE, OTHER = map(math.log, (1e-4, 0.01, 0.5, 1e-3, 2e-4))
LESS_USUAL = -0.2  # from each encoding to the next less usual one; it matters in texts with a few characters beyond ASCII
SHAPE = -0.5  # for a character of an encoding of shapes: nearly all letters of ISO-8859-6 are also letters of CP864
VALID = 0.4  # for a character of several bytes, since a text is rarely valid in such an encoding by chance
FREQUENT_SHARE = 0.5  # The frequent characters' share of a text in such a language.
LIKELY = math.log(5e-3)  # The least mean logarithm of the probability of a character for a guess without charset-normalizer.
MOSTLY = 0.8  # the share of capitals among the letters of a text of capitals
MARKS = frozenset("«»¿¡°§€£¢¥´©®™·•ªº½¼¾…\u00a0\u00ad–—‘’‚“”„‹›±µ×÷、。，．・！？；：（）「」『』《》〈〉　")  # noqa: RUF001
HALF_WIDTH = "".join(map(chr, range(0xFF61, 0xFFA0)))  # Katakana, of one byte in CP932
# Encodings that charset-normalizer reports, and the encodings nearly always meant instead, if the text is valid in them.
MEANT = {
    **{"euc_jis_2004": "euc_jp", "euc_jisx0213": "euc_jp", "shift_jis_2004": "cp932", "shift_jisx0213": "cp932"},
    **{"shift_jis": "cp932", "big5hkscs": "cp950", "johab": "cp949", "gb2312": "gb18030", "gbk": "gb18030"},
}
# In one of the two Greek encodings, capital alpha with an accent has the code of the other's apostrophe or pilcrow.
SYMBOL_BEFORE_WORD = re.compile("(?<!\\S)[\u2019\u00b6](?=[\u03ac-\u03ce])")
# A letter of Greek, Cyrillic, Hebrew or Arabic script in a word with Latin letters. Texts in these scripts have few.
AMONG_LATIN = re.compile("(?<=[A-Za-z])[\u0370-\u06ff]|[\u0370-\u06ff](?=[A-Za-z])")
# Characters of Chinese, Japanese and Korean; and one of them within a word with Latin letters.
ASIAN = re.compile("[\u3005\u3041-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff01-\uff9f]")
ALONE_AMONG_LATIN = re.compile("(?<=[A-Za-z])[\u3400-\ud7a3](?=[A-Za-z])")
# Punctuation of Western typesetting where it belongs: around or after words, between sentences, beside numbers. In another
# encoding, the same bytes are often letters, so such punctuation shows the encoding as letters do.
WELL_PLACED = re.compile(
    r"(?<!\w)[“„‘‚«‹](?=\w)|(?<=[\w.,!?;:…)])[”’»›](?!\w)|«(?=\s)|(?<=\s)»|(?<=[^\W\d])[’´\u00ad](?=[^\W\d])|(?<!\S)[–—•·](?!\S)"  # noqa: RUF001
    r"|(?<=[^\W\d])—(?=[^\W\d])|(?<=\d)[–°×](?=\d)|(?<=\d)\s?[°€£¢](?!\w)|(?<!\w)[€£¥±](?=\s?\d)|(?<=\w)…(?!\w)"  # noqa: RUF001
    r"|(?<=\d)\s?°(?=[CFK]\b)|(?<=\d)\s?[µ€](?=[a-zA-Z]?\b)|(?<=\s)[±×÷](?=\s)"  # noqa: RUF001
    r"|(?<!\w)[©§](?=\s?[\dA-Z])|(?<=\w)[®™](?!\w)|(?<![^\W\d])[¼½¾](?!\w)"
    r"|(?<=[\w!-~«»])\u00a0(?=[\w!-~«»])|(?<=[.,:;!?])\u00a0(?=\s)|(?<!\S)\u00a0(?!\S)"
)
# Punctuation that may follow a letter, and the part of it that another letter may follow.
AFTER_LETTERS = frozenset("“”‘’´»›–—…·•ªº®™°\u00a0\u00ad")  # noqa: RUF001
IN_WORDS = frozenset("’´—…·ªº®™°\u00a0\u00ad")  # noqa: RUF001
# A letter beside a digit, alone behind a sentence, or before the ASCII capital of a word; a capital alone behind a number. Such a
# letter is punctuation in another encoding.
LIKE_A_SYMBOL = re.compile(
    r"(?<=\d)[^\W\da-zA-Z_ªºµ](?!\w)|(?<!\w)[^\W\da-zA-Z_](?=\d)|(?<=[a-z][.,!?])[À-ɏ](?!\w)|(?<!\w)[ß-ɏ](?=[A-Z])"
    r"|(?<=\d )[À-ÖØ-Þ](?!\w)"
)
NOT_ASCII = re.compile(r"[^\x00-\x7f]")
ARABIC_SHAPES = re.compile("[\ufb50-\ufefc]+")
# Letters in a row that are not ASCII letters. Words in Latin script have few.
IN_A_ROW = re.compile(r"[^\W\da-zA-Z_]{3,}")
NOT_TRIED = ["ascii", "utf_8", "utf_8_sig", "utf_7", "utf_16", "utf_16_le", "utf_16_be", "utf_32", "utf_32_le", "utf_32_be"]
LATIN_END = "\u0250"  # The first character after the letters of Latin script.
SAMPLE = 1 << 14  # Bytes to examine.


def likely_encodings(data: bytes) -> Iterator[str]:
    """Yield Python's names of the possible encodings of a text, the most likely one first."""
    sample = data[:SAMPLE]
    if (mainframe := ebcdic_encoding(sample)) is not None:
        yield mainframe
        return
    scores = {encoding: encoding_score(sample, encoding) for encoding in (*SINGLE_BYTE, *SEVERAL_BYTES)}
    n_bytes = sum(byte > 0x7F for byte in sample)
    yield from (name for name in sorted(scores, key=scores.__getitem__, reverse=True) if scores[name] >= LIKELY * n_bytes)
    from charset_normalizer import from_bytes

    for match in from_bytes(sample, cp_exclusion=NOT_TRIED):
        yield from (name for name in (MEANT.get(match.encoding), match.encoding) if name and _decode(sample, name) is not None)


def encoding_score(sample: bytes, encoding: str) -> float:
    """Return the logarithm of the probability of a text's characters beyond ASCII, in the language that suits them best."""
    if (text := _decode(sample, encoding)) is None:
        return -math.inf
    if encoding in SEVERAL_BYTES:
        counts, frequent = _beyond_ascii(text), _frequent_characters(SEVERAL_BYTES[encoding])
        n_foreign = sum(count for character, count in counts.items() if character not in MARKS and not ASIAN.match(character))
        n_mistakes = len(ALONE_AMONG_LATIN.findall(text))
        return (
            _log_likelihood(counts, frequent, OTHER)
            + n_foreign * (FOREIGN - OTHER)
            + n_mistakes * MISTAKE
            + VALID * counts.total()
        )
    if encoding in OF_SHAPES:  # NFKC would also turn spaces of other kinds into ASCII, which counts for nothing.
        text = ARABIC_SHAPES.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
    # In a text of capitals, punctuation shows nothing: É in one encoding is … in another.
    in_capitals = sum(map(str.isupper, text)) > MOSTLY * sum(map(str.isalpha, text))
    placed = Counter[str]() if in_capitals else _beyond_ascii("".join(WELL_PLACED.findall(text)))
    n_mistakes = len(AMONG_LATIN.findall(text)) if in_capitals else _count_mistakes(text)
    counts = _beyond_ascii(text.lower().replace("i\u0307", "i")) - placed
    may_be_latin = _may_be_latin(text, counts)
    languages = [language for language, letters in ALPHABETS.items() if may_be_latin or letters[0] >= LATIN_END]
    best = max(_log_likelihood(counts, _letters(language), FOREIGN) for language in languages)
    rarity = LESS_USUAL * (SINGLE_BYTE.index(encoding) if encoding in SINGLE_BYTE else len(SINGLE_BYTE))
    shapes = SHAPE * counts.total() if encoding in OF_SHAPES else 0.0
    return best + placed.total() * PLACED + n_mistakes * MISTAKE + rarity + shapes


def _log_likelihood(counts: Counter[str], logarithms: Mapping[str, float], other: float) -> float:
    """Return the logarithm of the probability of characters, by those of each character; `other` is that of the rest."""
    return sum(count * logarithms.get(character, other) for character, count in counts.items())


@functools.cache
def _letters(language: str) -> dict[str, float]:
    """Return the logarithm of the probability of each letter of a language beyond ASCII, by its rank among them."""
    ratio = len(ALPHABETS[language]) / (len(ALPHABETS[language]) + 2)
    weights = {letter: ratio**rank for rank, letter in enumerate(ALPHABETS[language])}
    total = sum(weights.values())
    return dict.fromkeys(MARKS, PUNCTUATION) | {letter: math.log(weight / total) for letter, weight in weights.items()}


@functools.cache
def _frequent_characters(language: str) -> dict[str, float]:
    """Return the logarithm of the probability of each frequent character of a language with thousands of characters."""
    frequent = frozenset(FREQUENT[language])
    return {
        **dict.fromkeys(MARKS, PUNCTUATION),
        **dict.fromkeys(HALF_WIDTH, PUNCTUATION - VALID),
        **dict.fromkeys(frequent, math.log(FREQUENT_SHARE / len(frequent))),
    }


def _beyond_ascii(text: str) -> Counter[str]:
    return Counter(character for character in text if character > "\x7f")


def _may_be_latin(text: str, counts: Counter[str]) -> bool:
    """Return whether most letters are ASCII letters, with few others in a row, as in all languages in Latin script."""
    if counts.total() > sum(character.isascii() and character.isalpha() for character in text):
        return False
    in_a_row = IN_A_ROW.findall(text)
    return len(set(in_a_row)) <= 2 or 2 * sum(map(len, in_a_row)) <= counts.total()


def _decode(sample: bytes, encoding: str) -> str | None:
    """Return the beginning of a text, or None if it is not valid in an encoding."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(sample)
    except UnicodeDecodeError:
        return None


def decodes(blocks: Iterable[bytes], encoding: str) -> bool:
    """Return whether a whole text is valid in an encoding."""
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for block in blocks:
            decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _count_mistakes(text: str) -> int:
    """Return the number of implausible characters.

    They are capitals and symbols within words, apostrophes and symbols before words, letters in place of symbols, and letters of
    two scripts in one word.
    """
    places = (found.start() for found in NOT_ASCII.finditer(text, 1, len(text) - 1))
    n_misplaced = sum(text[at - 1].islower() and not _may_be_inside(text[at], text[at + 1]) for at in places)
    return n_misplaced + sum(len(pattern.findall(text)) for pattern in (SYMBOL_BEFORE_WORD, AMONG_LATIN, LIKE_A_SYMBOL))


def _may_be_inside(character: str, following: str) -> bool:
    """Return whether a character may come after a small letter and before another character."""
    if character.islower() or unicodedata.combining(character):
        return True
    return character in (IN_WORDS if following.isalpha() else AFTER_LETTERS)

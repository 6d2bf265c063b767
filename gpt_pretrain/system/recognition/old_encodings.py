"""Guess the old encoding of a text that is not in Unicode, and find the command to convert it."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from gpt_pretrain.system.recognition.ebcdic import ebcdic_encoding
from gpt_pretrain.system.shell import quote_word

# For each group of encodings, in order of preference: frequent non-ASCII letters, and other letters that occur.
ALPHABETS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("cp1252", "iso8859_15", "mac_roman", "cp850"), "éèàêçâîôäöüßáíóúñãåøæìòù", "õûëïðýþœÿ"),
    (("iso8859_3",), "ĉĝĥĵŝŭ", ""),
    (("cp1250", "iso8859_2", "cp852", "mac_latin2"), "ąęółśżćńźáíéěšýčřžůúöőüűăîâşţäß", "ťďňđľĺôŕç"),
    (("cp1254", "cp857"), "ığşçöü", "âîûé"),
    (("cp1258",), "\u0300\u0301\u0303\u0309\u0323ăâđêôơư", "àáãèéìíòóùúýõ"),
    (("cp1257",), "āčēģīķļņšūžąęėįųõäöü", ""),
    (("cp1251", "koi8_r", "koi8_u", "cp866", "iso8859_5", "mac_cyrillic"), "оеаинтсрвлкмдпу", "яыьзбгчйхжшюцщэфъёіїєґўјљњћџђ"),
    (("cp1253", "iso8859_7", "cp737", "mac_greek"), "αοιετσνηάίό", "υρπκμλςωγδθβχφξζψέήύώϊϋ"),
    (("cp1255", "cp862"), "יוהלאתמרבשנ", "גדזחטכסעפצקךםןףץ"),
    (("cp1256", "iso8859_6", "cp864"), "اليمنرتوبعدسهفكحق", "ءآأؤإئةثجخذزشصضطظغىپچ"),
    (("cp874",), "านรอกเงมยลวดทสต่้ีัิ", "ะาคจขชบปผพหแโใไุูื็ณธฟ"),
    (("euc_jp", "cp932"), "".join(map(chr, range(0x3041, 0x30FF))), "日一人年大国本中出上生行見事時分前気言手者"),
    (("gb18030",), "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子得着下自之年", "过发后作里天分家"),
    (("cp950", "big5hkscs"),
     "的一是不了在人有我他這個們中來上大為和國地到以說時要就出會可也你對生能而子得著下自之年",
     "過發後作裡天分家係嘅佢唔呢咁哋喺啲嘢嚟"),
    (("cp949",), "이다는에을가의를은로하고지한도서사기어자시인리나대과해으니라요그것", "안녕세계문장말일있수"),
)  # fmt: skip
PUNCTUATION = frozenset("«»¿¡°§€£©®™·•ªº½¼…\u00a0–—‘’‚“”„‹›、。，．・！？；：（）「」『』《》〈〉　")  # noqa: RUF001
SEVERAL_BYTES = ("euc_jp", "cp932", "gb18030", "cp950", "big5hkscs", "cp949")
# Encodings with characters of several bytes. A text is rarely valid in one by chance, and their scripts have many letters.
BONUS, OTHER_IDEOGRAPH = 0.3, 0.3
# Western encodings are the most usual ones, and decide if others suit a text no better than this. Portuguese has as many letters
# in common with Hungarian and Romanian.
WESTERN_BONUS = 0.01
SURE = 0.65  # The least score for a guess without charset-normalizer.
# Encodings that charset-normalizer reports, and the encodings nearly always meant instead, if the text is valid in them.
USUAL = {
    **{"euc_jis_2004": "euc_jp", "euc_jisx0213": "euc_jp", "shift_jis_2004": "cp932", "shift_jisx0213": "cp932"},
    **{"shift_jis": "cp932", "big5hkscs": "cp950", "johab": "cp949", "gb2312": "gb18030", "gbk": "gb18030"},
}
# iconv's names, if they are not Python's names in capital letters; None if iconv lacks the encoding.
ICONV: dict[str, str | None] = {
    **{"latin_1": "ISO-8859-1", "mac_roman": "MACINTOSH", "mac_latin2": "MAC-CENTRALEUROPE", "mac_iceland": "MAC-IS"},
    **{"kz1048": "RK1048", "ptcp154": "PT154", "euc_jp": "EUC-JP", "euc_kr": "EUC-KR", "koi8_r": "KOI8-R", "koi8_u": "KOI8-U"},
    **{"big5hkscs": "BIG5-HKSCS", "euc_jis_2004": "EUC-JISX0213", "euc_jisx0213": "EUC-JISX0213"},
    **{"shift_jis_2004": "SHIFT_JISX0213", "shift_jisx0213": "SHIFT_JISX0213"},
    **{"tis_620": "TIS-620", "hp_roman8": "HP-ROMAN8", "mac_cyrillic": "MAC-CYRILLIC"},
    **dict.fromkeys(("mac_greek", "mac_turkish", "koi8_t", "cp720", "hz", "cp864")),
}
# Encodings of the shapes of letters within words. Unicode's form NFKC turns these shapes into letters.
OF_SHAPES = ("cp864",)
# The deduction from such an encoding's score: nearly all letters of ISO-8859-6 are also letters of CP864.
SHAPES_PENALTY = 0.12
# In one of the two Greek encodings, capital alpha with an accent has the code of the other's apostrophe or pilcrow.
SYMBOL_BEFORE_WORD = re.compile("(?<!\\S)[\u2019\u00b6](?=[\u03ac-\u03ce])")
# A letter of Greek, Cyrillic, Hebrew or Arabic script in a word with Latin letters. Texts in these scripts have few.
AMONG_LATIN = re.compile("(?<=[A-Za-z])[\u0370-\u06ff]|[\u0370-\u06ff](?=[A-Za-z])")
# Punctuation of Western typesetting where it belongs: around or after words, between sentences, beside numbers. In another
# encoding, the same bytes are often letters, so such punctuation shows the encoding as letters do.
WELL_PLACED = re.compile(
    r"(?<!\w)[“„‘‚«‹](?=\w)|(?<=[\w.,!?;:…)])[”’»›](?!\w)|«(?=\s)|(?<=\s)»|(?<=[^\W\d])’(?=[^\W\d])|(?<!\S)[–—•](?!\S)"  # noqa: RUF001
    r"|(?<=[^\W\d])—(?=[^\W\d])|(?<=\d)[–°](?=\d)|(?<=\d)[°€£](?!\w)|(?<!\w)[€£](?=\d)|(?<=\w)…(?!\w)"  # noqa: RUF001
    r"|(?<!\w)[©§](?=\s?[\dA-Z])|(?<=\w)[®™](?!\w)|(?<=[\w!-~«»])\u00a0(?=[\w!-~«»])"
)
# Punctuation that may follow a letter, and the part of it that another letter may follow.
AFTER_LETTERS = frozenset("“”‘’»›–—…·•ªº®™°\u00a0\u00ad")  # noqa: RUF001
IN_WORDS = frozenset("’—…·ªº®™°\u00a0\u00ad")  # noqa: RUF001
# A letter beside a digit, alone behind a sentence, or before the ASCII capital of a word. Such a letter is punctuation in
# another encoding.
LIKE_A_SYMBOL = re.compile(
    r"(?<=\d)[^\W\da-zA-Z_ªº](?!\w)|(?<!\w)[^\W\da-zA-Z_](?=\d)|(?<=[a-z][.,!?])[À-ɏ](?!\w)|(?<!\w)[ß-ɏ](?=[A-Z])"
)
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
    scores = {name: _score(sample, group[0], name) for group in ALPHABETS for name in group[0]}
    yield from (name for name in sorted(scores, key=scores.__getitem__, reverse=True) if scores[name] >= SURE)
    from charset_normalizer import from_bytes

    for match in from_bytes(sample, cp_exclusion=NOT_TRIED):
        yield from (name for name in (USUAL.get(match.encoding), match.encoding) if name and _decode(sample, name) is not None)


def best_of_alphabet(encodings: Sequence[str], data: bytes) -> str:
    """Return the first of some encodings, or another one of the same alphabet that suits a longer part of the text better.

    Encodings of one alphabet may differ in only a few letters. A short sample may lack these.
    """
    first = encodings[0]
    group = next((names for names, _, _ in ALPHABETS if first in names), (first,))
    if len(group) == 1 or not set(group).isdisjoint(SEVERAL_BYTES):  # The part may begin within a character.
        return first
    return max((name for name in encodings if name in group), key=lambda name: _score(data, group, name))


def _score(sample: bytes, group: tuple[str, ...], encoding: str) -> float:
    """Return the mean weight of the non-ASCII characters if a text has this encoding. Frequent letters weigh most."""
    if (text := _decode(sample, encoding)) is None:
        return -1
    if encoding in OF_SHAPES:
        text = unicodedata.normalize("NFKC", text)
    frequent, others = next((frequent, others) for names, frequent, others in ALPHABETS if names == group)
    is_latin = frequent < LATIN_END
    # In a text of capitals, punctuation shows nothing: É in one encoding is … in another.
    if in_capitals := 2 * sum(map(str.isupper, text)) > sum(map(str.isalpha, text)):
        text = text.lower() if is_latin else text
    weights = dict.fromkeys(others.upper(), 0.3) | dict.fromkeys(frequent.upper(), 0.6)
    weights |= dict.fromkeys(others, 0.5) | dict.fromkeys(frequent, 1.0)
    several = OTHER_IDEOGRAPH if encoding in SEVERAL_BYTES else 0.0
    counts = Counter(character for character in text if character > "\x7f" and character not in PUNCTUATION)
    if is_latin and counts.total() > sum(character.isascii() and character.isalpha() for character in text):
        return 0  # In Latin script, most letters are ASCII letters.
    in_a_row = IN_A_ROW.findall(text)
    if is_latin and len(set(in_a_row)) > 2 and 2 * sum(map(len, in_a_row)) > counts.total():
        return 0
    total = sum(
        count * weights.get(character, several if "\u3400" <= character <= "\ud7a3" else 0.0)
        for character, count in counts.items()
    )
    mistakes, placed = (0, 0) if several else (_mistakes(text), 0 if in_capitals else len(WELL_PLACED.findall(text)))
    score = (total + placed - mistakes) / max(counts.total() + placed, 1) + (BONUS if several and counts else 0.0)
    return score - (SHAPES_PENALTY if encoding in OF_SHAPES else 0.0) + (WESTERN_BONUS if group == ALPHABETS[0][0] else 0.0)


def _decode(sample: bytes, encoding: str) -> str | None:
    """Return the beginning of a text, or None if it is not valid in an encoding."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(sample)
    except UnicodeDecodeError:
        return None


def convert_command(path: str, encoding: str) -> str:
    """Return the command that converts a file to UTF-8.

    Args:
        encoding: Python's name of the encoding.
    """
    return conversion(encoding).replace("{path}", quote_path(path))


def conversion(encoding: str) -> str:
    """Return the command that converts a file {path} to UTF-8."""
    if (name := iconv_name(encoding)) is not None:
        return f"iconv -f {name} -t UTF-8 {{path}} > new.txt"
    read = f"open(sys.argv[1], encoding='{encoding}', newline='').read()"
    if encoding in OF_SHAPES:
        read = f"unicodedata.normalize('NFKC', {read})"
    modules = "sys, unicodedata" if encoding in OF_SHAPES else "sys"
    return f'python -c "import {modules}; sys.stdout.buffer.write({read}.encode())" {{path}} > new.txt'


def iconv_name(encoding: str) -> str | None:
    """Convert Python's name of an encoding to iconv's name; None if iconv does not know it."""
    if encoding in ICONV:
        return ICONV[encoding]
    return encoding.upper().replace("ISO8859_", "ISO-8859-").replace("ISO2022_", "ISO-2022-").replace("_", "-")


def quote_path(path: str) -> str:
    """Quote a path for a command, even one that begins like an option."""
    return quote_word(f"./{path}" if path.startswith("-") else path)


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


def _mistakes(text: str) -> int:
    """Return the number of implausible characters.

    They are capitals and symbols within words, apostrophes and symbols before words, letters in place of symbols, and letters of
    two scripts in one word.
    """
    inside = [text[at : at + 2] for at in range(1, len(text) - 1) if text[at - 1].islower() and text[at] > "\x7f"]
    allowed = [pair[0].islower() or pair[0] in (IN_WORDS if pair[1].isalpha() else AFTER_LETTERS) for pair in inside]
    return allowed.count(False) + sum(len(pattern.findall(text)) for pattern in (SYMBOL_BEFORE_WORD, AMONG_LATIN, LIKE_A_SYMBOL))

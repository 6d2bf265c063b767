"""Explain where a text is not UTF-8, what it is instead, and how to convert it."""

from __future__ import annotations

import codecs
import itertools
import os
import re
from collections.abc import Iterator, Sequence

from gpt_pretrain.system.recognition.conversion import convert_command, quote_path
from gpt_pretrain.system.recognition.encodings import begins_as_utf8
from gpt_pretrain.system.recognition.file_kinds import ARRAY, HEAD, LINES, OBJECTS, ROWS
from gpt_pretrain.system.recognition.file_recognition import content_name, recognize
from gpt_pretrain.system.recognition.old_encodings import decodes, encoding_score, likely_encodings
from gpt_pretrain.texts.containers.blocks import read_stream

BEFORE, AFTER = 2000, 4000  # The encoding is guessed from this many bytes before and after the first invalid one.
SURROUNDINGS = 1 << 16  # bytes on each side that show whether the rest is UTF-8
LARGEST_CHECKED = 1 << 30  # bytes of a file that is decoded as a whole to check a guess
# Characters of several bytes for each invalid byte: with MOSTLY or more, a text is damaged UTF-8; with SOME, it is partly UTF-8.
MOSTLY, SOME = 5, 0.1
# Text in these encodings is hardly ever valid UTF-8 by chance.
HARDLY_UTF8 = ("cp1252", "cp1250", "cp1254", "cp1257", "iso8859_2", "iso8859_3", "iso8859_10", "iso8859_15")
# Surrogate pairs become the characters that they stand for. Single surrogates become the replacement character.
MEND_SURROGATES = (
    "python -c \"import sys; text = open(sys.argv[1], encoding='utf-8', errors='surrogatepass', newline='').read(); "
    "sys.stdout.buffer.write(text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace').encode())\" {path} > new.txt"
)
BLANKS = re.compile(r"\s+", re.ASCII)
EXCERPT = 40  # Characters of the part of a text that shows whether a guess is right.
MAX_EXPLAINED = 10  # files or members of archives whose encoding is guessed
JAVA_NUL = b"\xc0\x80"
DROP_NULS = (
    "python -c \"import sys; data = open(sys.argv[1], 'rb').read(); sys.stdout.buffer.write(data.replace(b'\\xc0\\x80', b''))\" "
    "{path} > new.txt"
)


class InvalidTexts:
    """Explains texts that are not UTF-8. Only the first files are looked at, each once, since there may be any number of them."""

    def __init__(self) -> None:
        self._advice: dict[str, str] = {}

    def explain(self, block: bytes, error: UnicodeDecodeError, position: int, path: str) -> str:
        """Return where a text is not UTF-8 and how to convert it, in one text. See `explain_invalid_utf8`."""
        if path not in self._advice and len(self._advice) < MAX_EXPLAINED:
            self._advice[path] = explain_invalid_utf8(block, error, position, path)[1]
        return ". ".join(filter(None, (_invalid_position(error, position), self._advice.get(path))))


def explain_invalid_utf8(block: bytes, error: UnicodeDecodeError, position: int, path: str) -> tuple[str, str]:
    """Return where a text is not UTF-8, and how to convert it; the second is empty if the encoding cannot be guessed.

    Args:
        block: The part of the text that was being decoded.
        position: The offset of the block in the text.
        path: The path of the file, or the label of a member of an archive, for which no command is given.
    """
    where = _invalid_position(error, position)
    is_file = content_name(path) == path and os.path.isfile(path)

    def advice(text: str, command: str) -> tuple[str, str]:
        return where, f"{text}: {command}" if is_file else text

    drop = f"iconv -c -f UTF-8 -t UTF-8 {quote_path(path)} > new.txt"
    begin = error.start
    if is_file:
        block, begin = _around_first_invalid(path)
    before, valid_share = block[:begin], _valid_share(block)
    may_be_cut = valid_share >= MOSTLY or (before.isascii() and not _ends_in_accent(before, block[begin:]))
    if may_be_cut and _ends_in_character(block[begin:]):
        return advice("It ends in the middle of a character. Get it again, or leave out this character", drop)
    if _is_utf8_with_surrogates(block):
        mend = MEND_SURROGATES.replace("{path}", quote_path(path))
        return advice("It contains surrogates, which a faulty conversion to UTF-8 left behind. Replace them", mend)
    if valid_share >= MOSTLY:
        return advice("The rest of the text is UTF-8. Leave out the damaged characters", drop)
    if _is_utf8_of_java(block):
        return advice(
            "It contains NULs as Java writes them, C0 80. Leave them out", DROP_NULS.replace("{path}", quote_path(path))
        )
    sample = block[max(begin - BEFORE, 0) : begin + AFTER]
    guesses = list(dict.fromkeys(likely_encodings(sample)))
    if is_file and os.path.getsize(path) <= LARGEST_CHECKED:
        guesses = [encoding for encoding in guesses if decodes(_blocks_of(path), encoding)]
    if not guesses:
        return where, "It is in another encoding, or in several. Save it as UTF-8 with the program that wrote it"
    guess = _best_in_block(guesses, sample, block)
    name = guess.upper().replace("_", "-")
    if valid_share > SOME and guess in HARDLY_UTF8:
        name = next(likely_encodings(_without_utf8(sample)), guess).upper().replace("_", "-")
        return where, f"Some of it is UTF-8, and some looks like {name}. Convert the latter part by itself"
    others = (other for other in guesses if _read(sample, other) != _read(sample, guess))
    part = _telling_part(_read(sample, guess), guess, next(others, "ascii"))
    return advice(
        f'It looks like {name}, in which a part of it reads "{part}". If that is right, convert it', convert_command(path, guess)
    )


def _best_in_block(guesses: Sequence[str], sample: bytes, block: bytes) -> str:
    """Return the first of some encodings, or one in which a sample reads the same and that suits a larger block better."""
    same = [guess for guess in guesses if _read(sample, guess) == _read(sample, guesses[0])]
    return max(same, key=lambda guess: encoding_score(block, guess)) if len(same) > 1 else same[0]


def _read(sample: bytes, encoding: str) -> str:
    return sample.decode(encoding, errors="ignore")


def _telling_part(text: str, encoding: str, other: str) -> str:
    """Return the part of a text, in one line, with the most characters that another encoding would read differently."""
    beyond_ascii = {character for character in text if character > "\x7f"}
    telling = {one for one in beyond_ascii if one.encode(encoding, errors="ignore").decode(other, errors="replace") != one}
    words = [word[at : at + EXCERPT] for word in BLANKS.split(text) for at in range(0, len(word), EXCERPT)]
    parts = [_joined(words[start : start + EXCERPT]) for start in range(len(words))]
    return max(parts, key=lambda part: (len(telling.intersection(part)), len(beyond_ascii.intersection(part))), default="")


def _joined(words: Sequence[str]) -> str:
    """Return the first of some words, with blanks between them, as many as fit into a part."""
    ends = itertools.accumulate(len(word) + 1 for word in words)
    return " ".join(words[: sum(1 for _ in itertools.takewhile(lambda end: end <= EXCERPT + 1, ends))])


def _invalid_position(error: UnicodeDecodeError, position: int) -> str:
    return f"{error.reason} near byte {position + error.start}"


def encoding_advice(path: str) -> str:
    """Return how to convert a file of JSON or a table that is not UTF-8, or "" if the encoding cannot be guessed."""
    if not os.path.isfile(path):
        return ""
    with open(path, "rb") as stream:
        kind = recognize(path, stream.read(HEAD))
    if kind.form not in (LINES, ARRAY, OBJECTS, ROWS) or decodes(_blocks_of(path), "utf-8"):
        return ""
    unknown = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid byte")  # The position does not matter here.
    return explain_invalid_utf8(b"", unknown, 0, path)[1]


def _valid_share(block: bytes) -> float:
    """Return the number of characters of several bytes for each invalid byte."""
    text = block.decode(errors="replace")
    invalid = text.count("\ufffd")
    return (sum(character > "\x7f" for character in text) - invalid) / max(invalid, 1)


def _without_utf8(block: bytes) -> bytes:
    """Return a text without its characters of several bytes that are valid UTF-8."""
    text = block.decode(errors="surrogateescape")
    return "".join(one for one in text if one < "\x80" or "\udc80" <= one <= "\udcff").encode(errors="surrogateescape")


def _ends_in_character(rest: bytes) -> bool:
    """Return whether bytes end within a character that begins as UTF-8 does."""
    return len(rest) < 4 and begins_as_utf8(rest)


def _ends_in_accent(before: bytes, rest: bytes) -> bool:
    """Return whether a text ends in a word with one last byte such as E9, an accented letter in many old encodings.

    In UTF-8, the byte would begin a letter of another script. Letters of Latin script begin with C3 to C5.
    """
    return len(rest) == 1 and rest > b"\xc5" and before[-1:].isalpha()


def _is_utf8_with_surrogates(block: bytes) -> bool:
    try:
        text = _decode_with_surrogates(block)
    except UnicodeDecodeError:
        return False
    return any("\ud800" <= character <= "\udfff" for character in text)


def _is_utf8_of_java(block: bytes) -> bool:
    """Return whether a text is UTF-8 but for NULs of two bytes and perhaps surrogates, as Java writes it."""
    try:
        _decode_with_surrogates(block.replace(JAVA_NUL, b""))
    except UnicodeDecodeError:
        return False
    return JAVA_NUL in block


def _decode_with_surrogates(block: bytes) -> str:
    """Return the text of bytes, which may end within a character."""
    return codecs.getincrementaldecoder("utf-8")(errors="surrogatepass").decode(block)


def _around_first_invalid(path: str) -> tuple[bytes, int]:
    """Return the bytes around the first invalid byte of a file, and the position of that byte among them."""
    decoder, position = codecs.getincrementaldecoder("utf-8")(), 0
    for block in _blocks_of(path):
        try:
            decoder.decode(block)
        except UnicodeDecodeError as error:
            position += error.start - len(error.object) + len(block)
            break
        position += len(block)
    else:
        position -= len(decoder.getstate()[0])
    begin = max(position - SURROUNDINGS, 0)
    with open(path, "rb") as stream:
        stream.seek(begin)
        return stream.read(position - begin + SURROUNDINGS), position - begin


def _blocks_of(path: str) -> Iterator[bytes]:
    with open(path, "rb") as stream:
        yield from read_stream(stream)

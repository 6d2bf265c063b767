"""Explain where a text is not UTF-8, what it is instead, and how to convert it."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator

from gpt_pretrain.system.ebcdic import LETTERS as EBCDIC
from gpt_pretrain.system.file_kinds import ARRAY, HEAD, LINES, OBJECTS, ROWS
from gpt_pretrain.system.file_recognition import content_name, recognize
from gpt_pretrain.system.formatting import format_count
from gpt_pretrain.system.old_encodings import convert_command, decodes, likely_encodings, quote_path
from gpt_pretrain.texts.blocks import read_stream

BEFORE, AFTER = 2000, 4000  # Bytes around the first one that is not UTF-8 from which the encoding is guessed.
SURROUNDINGS = 1 << 16  # Bytes on each side that tell whether the rest is UTF-8.
LARGEST_CHECKED = 1 << 30  # Bytes of a file that is decoded as a whole to check a guess.
# A text is damaged UTF-8 if it has this many times as many characters of several bytes as invalid bytes, or partly UTF-8.
MOSTLY, SOME = 5, 0.1
HARDLY_UTF8 = ("cp1252", "cp1250", "cp1254")  # Text in these encodings is hardly ever valid UTF-8 by chance.
# Pairs become the characters that they stand for, and halves of pairs the replacement character.
MEND_SURROGATES = (
    "python -c \"import sys; text = open(sys.argv[1], encoding='utf-8', errors='surrogatepass', newline='').read(); "
    "sys.stdout.buffer.write(text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace').encode())\" {path} > new.txt"
)
FEW = 20  # So few characters besides ASCII leave the encoding open.
MAX_EXPLAINED = 10  # Files, or members of an archive, that are looked at to tell how they are converted.
JAVA_NUL = b"\xc0\x80"
DROP_NULS = (
    "python -c \"import sys; data = open(sys.argv[1], 'rb').read(); sys.stdout.buffer.write(data.replace(b'\\xc0\\x80', b''))\" "
    "{path} > new.txt"
)


class InvalidTexts:
    """Explains texts that are not UTF-8, of which there may be any number. Each of the first files is looked at once."""

    def __init__(self) -> None:
        self._advice: dict[str, str] = {}

    def explain(self, block: bytes, error: UnicodeDecodeError, position: int, path: str) -> str:
        """Return in sentences what `explain_invalid_utf8` returns, which has the same arguments."""
        if path not in self._advice and len(self._advice) < MAX_EXPLAINED:
            self._advice[path] = explain_invalid_utf8(block, error, position, path)[1]
        return ". ".join(filter(None, (_place(error, position), self._advice.get(path))))


def explain_invalid_utf8(block: bytes, error: UnicodeDecodeError, position: int, path: str) -> tuple[str, str]:
    """Return where a text is not UTF-8, and how to convert it if that can be told.

    Args:
        block: The part of the text that has been decoded.
        position: Of the block in the text.
        path: Of the file, or the name of a member of an archive, for which there is no command.
    """
    where = _place(error, position)
    is_file = content_name(path) == path and os.path.isfile(path)

    def advice(text: str, command: str) -> tuple[str, str]:
        return where, f"{text}: {command}" if is_file else text

    drop = f"iconv -c -f UTF-8 -t UTF-8 {quote_path(path)} > new.txt"
    begin = error.start
    if is_file:
        block, begin = _around_first_invalid(path)
    before, valid_share = block[:begin], _valid_share(block)
    if _ends_in_character(block[begin:]) and (before.isascii() or valid_share >= MOSTLY):
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
    name = guesses[0].upper().replace("_", "-")
    if valid_share > SOME and guesses[0] in HARDLY_UTF8:
        return where, f"Some of it is UTF-8, and some looks like {name}. Convert the latter part by itself"
    told_by = sum(character > "\x7f" for character in sample.decode(guesses[0], errors="ignore"))
    is_guess = told_by < FEW and guesses[0] not in EBCDIC  # All letters of EBCDIC tell it.
    few = f" (a guess from only {format_count(told_by, 'character')}, so check the result)" * is_guess
    return advice(f"It looks like {name}{few}", convert_command(path, guesses[0]))


def _place(error: UnicodeDecodeError, position: int) -> str:
    return f"{error.reason} near byte {position + error.start}"


def encoding_advice(path: str) -> str:
    """Return how to convert a file of JSON or a table that is not UTF-8, or nothing if that cannot be told."""
    if not os.path.isfile(path):
        return ""
    with open(path, "rb") as stream:
        kind = recognize(path, stream.read(HEAD))
    if kind.form not in (LINES, ARRAY, OBJECTS, ROWS) or decodes(_blocks_of(path), "utf-8"):
        return ""
    unknown = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid byte")  # Where it is does not matter.
    return explain_invalid_utf8(b"", unknown, 0, path)[1]


def _valid_share(block: bytes) -> float:
    """Return how many characters of several bytes there are for each invalid byte."""
    text = block.decode(errors="replace")
    invalid = text.count("\ufffd")
    return (sum(character > "\x7f" for character in text) - invalid) / max(invalid, 1)


def _ends_in_character(rest: bytes) -> bool:
    """Return whether bytes that are not UTF-8 are the beginning of a character, and nothing follows."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(rest)
    except UnicodeDecodeError:
        return False
    return len(rest) < 4


def _is_utf8_with_surrogates(block: bytes) -> bool:
    try:
        text = block[: block.rfind(b"\n") + 1 or len(block)].decode(errors="surrogatepass")
    except UnicodeDecodeError:
        return False
    return any("\ud800" <= character <= "\udfff" for character in text)


def _is_utf8_of_java(block: bytes) -> bool:
    """Return whether nothing but NULs of two bytes, and perhaps surrogates, keeps a text from being UTF-8."""
    try:
        block[: block.rfind(b"\n") + 1 or len(block)].replace(JAVA_NUL, b"").decode(errors="surrogatepass")
    except UnicodeDecodeError:
        return False
    return JAVA_NUL in block


def _around_first_invalid(path: str) -> tuple[bytes, int]:
    """Return the bytes around the first one in a file that is not UTF-8, and its position among them."""
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

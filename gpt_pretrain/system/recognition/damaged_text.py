"""Recognize by the beginning of a UTF-8 text that an earlier conversion has damaged its letters.

A damaged text is still valid UTF-8, so nothing else keeps a model from learning the damage.
"""

from __future__ import annotations

import codecs
import functools
import itertools
import re

from gpt_pretrain.system.recognition.conversion import iconv_name

NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
# Encodings that programs often mistake UTF-8 for.
MISTAKEN = ("cp1252", "cp1251", "cp1250", "mac_roman", "cp850", "cp437")
MAX_RUNS = 300  # Groups of non-ASCII letters to examine.
FEWEST_RUNS, ENOUGH = 10, 0.8  # Fewer groups may be valid by chance. This share must be UTF-8 in the other encoding.
# The largest shares of characters of each kind in an undamaged text.
MANY_REPLACED, MANY_CONTROLS, MANY_QUESTIONS = 0.001, 0.001, 0.2
FEWEST_CHARACTERS = 100
# Ways to write letters in ASCII: their patterns, and Python code that converts them back.
ESCAPES = (
    (re.compile(r"&(?:#\d{2,7}|#x[0-9a-fA-F]{2,6}|[A-Za-z]{2,8});"), "html.unescape(data.decode()).encode()"),
    (re.compile(r"\\u[0-9a-fA-F]{4}"), ""),
    (re.compile(r"=[C-F][0-9A-F](?:=[89AB][0-9A-F])+"), "quopri.decodestring(data)"),  # UTF-8 in an e-mail
)
MANY_ESCAPED = 0.02
JSON_ESCAPE = re.compile(r"\\\\|\\u([0-9a-fA-F]{4})")
UNDO = " (to undo that: "
CONTROLS = re.compile(r"[\x80-\x84\x86-\x9f]")  # without the line end of mainframes


def conversion_damage(head: bytes) -> str:
    """Describe the damage of an earlier conversion to a text, as the rest of a sentence with {path} for its file, or nothing.

    Args:
        head: The beginning of the text. Text that is not UTF-8 is left to the code that reads it.
    """
    try:
        start = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return ""
    total = len(start)
    if total < FEWEST_CHARACTERS:
        return ""
    if start.count("?") > MANY_QUESTIONS * total:
        return "consists largely of question marks, with which a conversion replaced its letters. Convert the original again"
    if start.isascii():
        return ""
    if (mistaken := _mistaken_for(start)) is not None:
        return mistaken
    if (replaced := start.count("\ufffd")) > MANY_REPLACED * total:
        share = f"{100 * replaced / total:.2g}"
        return f"has U+FFFD in place of {share}% of its characters, which a conversion could not read. Convert the original again"
    if len(CONTROLS.findall(start)) > MANY_CONTROLS * total:
        return (
            "has control characters in place of quotation marks and dashes, as if CP1252 had been taken for Latin-1 (to undo "
            "that: iconv -f UTF-8 -t ISO-8859-1 {path} | iconv -f CP1252 -t UTF-8 > new.txt)"
        )
    return ""


def escapes_left(head: bytes) -> str:
    """Describe escapes in place of letters in a plain text, as the rest of a sentence with {path} for its file, or nothing.

    Args:
        head: The beginning of the text.
    """
    start = head.decode(errors="ignore")
    for pattern, undone in ESCAPES:
        found = [match[0] for match in pattern.finditer(start)]
        if len(start) >= FEWEST_CHARACTERS and sum(map(len, found)) > MANY_ESCAPED * len(start):
            program = f"import html, quopri, sys; data = open(sys.argv[1], 'rb').read(); sys.stdout.buffer.write({undone})"
            command = f'{UNDO}python -c "{program}" {{path}} > new.txt)' * bool(undone)
            return f"has escapes such as {found[0]} in place of letters{command}"
    return ""


def damage_in_records(start: str) -> str:
    """Describe the damage to the texts in JSON or in a table, as the rest of a sentence, or nothing.

    It names no command, since a command would also change the characters between the records.

    Args:
        start: The beginning of the file. Its texts may have JSON's escapes.
    """
    plain = JSON_ESCAPE.sub(lambda escape: chr(int(escape[1], 16)) if escape[1] else "\\", start)
    data = plain.encode("utf-16", errors="surrogatepass").decode("utf-16", errors="ignore").encode()
    return (conversion_damage(data) or escapes_left(data)).partition(UNDO)[0]


def _mistaken_for(start: str) -> str | None:
    """Return the encoding that UTF-8 was mistaken for before it was written as UTF-8 again, or None."""
    runs = [match[0] for match in itertools.islice(NOT_ASCII.finditer(start), MAX_RUNS)]
    if len(runs) < FEWEST_RUNS:
        return None
    for encoding in MISTAKEN:
        undone = [(run, original) for run in runs if (original := _undo(run, encoding)) is not None]
        if len(undone) >= ENOUGH * len(runs):
            letters = [(run[: len(original[0].encode())], original[0]) for run, original in undone]
            seen, meant = next((pair for pair in letters if "".join(pair).isprintable()), letters[0])
            name = iconv_name(encoding) or encoding.upper()
            return f"has {seen} where {meant} seems to be meant, as if UTF-8 had been taken for {name}{_command(encoding, start)}"
    return None


def _undo(run: str, encoding: str) -> str | None:
    """Return the original characters of some damaged ones, or None if they are not UTF-8 mistaken for this encoding."""
    try:
        return run.translate(_bytes_of(encoding)).encode("latin-1").decode()
    except UnicodeError:
        return None


@functools.cache
def _bytes_of(encoding: str) -> dict[int, int]:
    """Return the bytes of characters in an encoding. A control character stands for a byte that is undefined in it."""
    meanings = {byte: bytes([byte]).decode(encoding, errors="ignore") for byte in range(0x80, 0x100)}
    return {ord(character or chr(byte)): byte for byte, character in meanings.items()}


def _command(encoding: str, start: str) -> str:
    """Return the command that undoes the mistake, or nothing if the program iconv cannot undo it."""
    for name in (encoding, "latin_1"):
        try:
            codecs.getincrementaldecoder("utf-8")().decode(start.encode(name))
        except UnicodeError:
            continue
        return f"{UNDO}iconv -f UTF-8 -t {iconv_name(name)} {{path}} > new.txt)"
    return ""

"""Recognize encodings that write non-ASCII characters with ASCII bytes: after a switching code, or Hebrew in EBCDIC."""

from __future__ import annotations

import re
from collections import Counter

from gpt_pretrain.system.recognition.ebcdic import ebcdic_encoding
from gpt_pretrain.system.recognition.encodings import ENOUGH, FREQUENT, IDEOGRAPHS, script_index

# Escape sequences of ISO 2022, by Python's name of the encoding.
ESCAPES = (
    ("iso2022_kr", re.compile(rb"\x1b\$\)C")),
    ("iso2022_cn", re.compile(rb"\x1b\$\)[AE]|\x1b\$\*H")),
    ("iso2022_jp_2", re.compile(rb"\x1b\$A|\x1b\.[AF]")),
    ("iso2022_jp_3", re.compile(rb"\x1b\$\([OPQ]")),
    ("iso2022_jp", re.compile(rb"\x1b\$[@B]")),
)
# A part of a text in HZ, or the beginning of a part in UTF-7. Other text that begins like this is rarely valid in all its parts.
HZ = re.compile(rb"~\{((?:[\x21-\x77][\x21-\x7e])+?)(?:~\}|\n|.?\Z)")
HEBREW, FEWEST_HEBREW = "cp424", 30  # Characters; fewer may be Hebrew by chance.
OFTEN = 0.1  # Share of the most frequent characters among Chinese or Korean ones.
UTF7 = re.compile(rb"\+([A-Za-z0-9+/]*)")


def seven_bit_encoding(head: bytes) -> str | None:
    """Return Python's name of the encoding of a text by its first bytes; None if it is plain ASCII, or has other bytes."""
    if not head.isascii():
        return None
    escaped = next((name for name, code in ESCAPES if code.search(head) is not None), None)
    if escaped is not None:
        return escaped
    return "hz" if _is_hz(head) else "utf_7" if _is_utf7(head) else HEBREW if _is_hebrew(head) else None


def _is_hebrew(head: bytes) -> bool:
    """Return whether a text is Hebrew in EBCDIC. All letters of this encoding are ASCII characters."""
    return len(head) >= FEWEST_HEBREW and ebcdic_encoding(head) == HEBREW


def _is_hz(head: bytes) -> bool:
    """Return whether all content between HZ's braces consists of pairs of bytes for Chinese characters."""
    parts = HZ.findall(head)
    if not parts or len(parts) < head.count(b"~{") - head.count(b"~{~}"):
        return False
    try:
        text = b"".join(parts).translate(bytes(byte | 0x80 for byte in range(256))).decode("gb2312")
    except UnicodeDecodeError:
        return False
    return _is_foreign(text)


def _is_utf7(head: bytes) -> bool:
    """Return whether each plus sign begins a valid part of UTF-7, and these parts are non-ASCII letters."""
    complete = head[: head.rfind(b"\n") + 1 or len(head)]  # The last part may lack its end.
    parts = [match[1] for match in UTF7.finditer(complete) if match[1] or complete[match.end() : match.end() + 1] != b"-"]
    texts = [_decode_utf7(part) for part in parts]
    return bool(texts) and all(texts) and _is_foreign("".join(map(str, texts)))


def _decode_utf7(part: bytes) -> str | None:
    """Return the characters of a part of UTF-7, or None if it is not valid."""
    if not part or len(part) * 6 % 16 >= 6:  # Less than a letter of Base64 is left over.
        return None
    try:
        return (b"+" + part + b"-").decode("utf-7")
    except UnicodeDecodeError:
        return None


def _is_foreign(text: str) -> bool:
    """Return whether at least two non-ASCII characters belong to one script."""
    scripts = Counter(script_index(ord(character)) for character in text)
    script, count = max(
        ((found, number) for found, number in scripts.items() if found not in (None, -1)),
        default=(None, 0),
        key=lambda item: item[1],
    )
    if len(text) < 2 or text.isascii() or count + scripts[-1] < ENOUGH * len(text):
        return False
    return script not in IDEOGRAPHS or sum(character in FREQUENT for character in text) >= OFTEN * count

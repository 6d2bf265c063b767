"""Recognize the kind of a file by its first bytes and its name."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import PurePath

from gpt_pretrain.system.recognition.conversion import conversion, iconv_name
from gpt_pretrain.system.recognition.damaged_text import conversion_damage, damage_in_records, escapes_left
from gpt_pretrain.system.recognition.encodings import TextEncoding, begins_as_utf8, detect_encoding, is_partly_utf_16
from gpt_pretrain.system.recognition.file_kinds import (
    ARROW,
    AS_TEXT_ADVICE,
    BINARY,
    COMPRESSED_SUFFIXES,
    CSV,
    EMPTY_FILE,
    EPUB,
    FEATHER,
    HTML,
    IWORK,
    JAR,
    JSON_LINES,
    LITDATA,
    MAILBOX,
    MEDIA_ADVICE,
    MHTML,
    MP4,
    MP4_SOUND,
    NOTEBOOK,
    NPZ,
    NULS,
    PARQUET,
    PARQUET_SUMMARY,
    PART_OF_ZIP,
    PARTLY_UTF_16,
    PICKLE,
    PICTURE_ADVICE,
    PLAIN,
    SHEET,
    SIGNATURES,
    SLIDES,
    SUFFIXES,
    TAR,
    TEXTUAL,
    TOKEN_SUFFIXES,
    TOKENS,
    TORCH,
    WIKI,
    WORD,
    XML,
    ZIP,
    ZIP_BEHIND_TEXT,
    FileKind,
    convert_advice,
)
from gpt_pretrain.system.recognition.json_recognition import json_kind
from gpt_pretrain.system.recognition.seven_bit_encodings import seven_bit_encoding
from gpt_pretrain.system.recognition.text_forms import other_form

ZIP_PART = re.compile(r"\.zip|\.z\d\d")  # the last part of a divided archive, and the others
TEXT_SUFFIXES = (".txt", ".md", ".text")
PARQUET_SUMMARIES = ("_metadata", "_common_metadata")  # Their names in a folder of many parts.
NOTEBOOK_START = re.compile(r'\{\s*"(cells|metadata|nbformat\w*)"\s*:.{0,40000}?"(cell_type|nbformat)"\s*:', re.DOTALL)
# Each part matches in one way only. With \r?\n after .*, each line would double the time, since .* may match the \r too.
_HEADER = r"[A-Za-z][\w-]*+: [^\n]*+\n(?:[ \t][^\n]*+\n)*+"
# The first line of an e-mail in a mailbox, or a header that occurs only in e-mails.
MAIL_START = re.compile(
    rf"From \S++ (?=[^\n]*\d\d:\d\d)[^\n]*+\n{_HEADER}"
    rf"|(?:{_HEADER})*?(?:message-id|mime-version|received|return-path|delivered-to): ",
    re.IGNORECASE,
)
NAMESPACE = re.compile(r"<[A-Za-z_][\w.:-]*\s[^<>]{0,4000}?\bxmlns(?::[\w.-]+)?\s*=")  # In the first element of XML.
SAVED_PAGE = re.compile(r"^(From: <Saved by |Snapshot-Content-Location: )", re.MULTILINE)


def recognize(name: str, head: bytes, *, as_text: bool = False) -> FileKind:
    """Return the kind of a file.

    Args:
        name: Its name or path, without the suffix of a compressed file. The suffix counts if the bytes leave a choice.
        head: Its first HEAD bytes, or all of them.
        as_text: Treat every text as plain text, even tables, JSON and HTML.
    """
    if not head:
        return EMPTY_FILE
    suffix = PurePath(name).suffix.lower()
    if suffix in COMPRESSED_SUFFIXES and suffix not in SUFFIXES:
        inner = PurePath(content_name(name)).suffix.lower()  # Browsers decompress some files but keep their names.
        suffix = inner if is_text_kind(inner) or inner in TEXT_SUFFIXES else suffix
    signed = _by_signature(head, suffix, as_text=as_text)
    if signed is not None:
        is_summary = signed.form == PARQUET and PurePath(name).name in PARQUET_SUMMARIES
        return PARQUET_SUMMARY if is_summary else signed
    if not as_text and (switched := seven_bit_encoding(head)) is not None:
        name = iconv_name(switched) or switched.upper()
        return FileKind(f"text in {name}", advice=convert_advice(conversion(switched), "Convert it first") + AS_TEXT_ADVICE)
    encoding = detect_encoding(head)
    if encoding is None or (suffix in TOKEN_SUFFIXES and not encoding.has_mark and not _is_clean(head, encoding)):
        if suffix in TOKEN_SUFFIXES:
            return LITDATA if suffix == ".bin" and _begins_with_offsets(head) else TOKENS
        if suffix in SUFFIXES and not is_text_kind(suffix):
            return SUFFIXES[suffix]
        if _is_zip_behind_text(head):
            return ZIP_BEHIND_TEXT
        if head.strip(b"\0"):
            return PART_OF_ZIP if ZIP_PART.fullmatch(suffix) else PARTLY_UTF_16 if is_partly_utf_16(head) else BINARY
        return TAR if suffix == ".tar" else NULS  # An archive of no files consists of NULs.
    if suffix in SUFFIXES and not is_text_kind(suffix) and encoding.name == "utf-8" and b"\0" in head:
        return SUFFIXES[suffix]  # A program, for example, may consist mostly of text.
    if SUFFIXES.get(suffix) is PICKLE and not as_text:
        return PICKLE  # The oldest protocol writes only ASCII.
    start = _decode(head, encoding)
    kind = PLAIN if as_text else _by_text(start, SUFFIXES.get(suffix), is_text_named=suffix in TEXT_SUFFIXES)
    if encoding.name == "utf-8" or not kind.is_read:
        warning = kind.warning or (_damage(kind, head, start, as_text=as_text) if kind.is_read else "")
        return replace(kind, encoding=encoding, warning=warning)
    said = f"{encoding.name.upper().replace('-LE', '').replace('-BE', '')}{' by its first bytes' * (not encoding.has_mark)}"
    return replace(kind, encoding=encoding, warning=f"is read as {said}" if not kind.warning else kind.warning)


def _damage(kind: FileKind, head: bytes, start: str, *, as_text: bool) -> str:
    """Describe the damage to a UTF-8 text, as the rest of a sentence, or nothing."""
    if as_text or kind is not PLAIN:
        return conversion_damage(head) or ("" if as_text else damage_in_records(start))
    return conversion_damage(head) or escapes_left(head) or other_form(start)


def _begins_with_offsets(head: bytes) -> bool:
    """Return whether a file begins like a chunk of LitData: the number n of its items, and the n + 1 offsets of their bytes."""
    count, first = (int.from_bytes(head[at : at + 4], "little") for at in (0, 4))
    return count > 0 and first == 4 * (count + 2)


def is_text_kind(suffix: str) -> bool:
    """Return whether a suffix is known to mean text."""
    kind = SUFFIXES.get(suffix)
    return kind in (JSON_LINES, CSV, HTML, XML, MHTML, NOTEBOOK)


def content_name(name: str) -> str:
    """Return the name of a compressed file's content: `a.jsonl` for `a.jsonl.gz`, `a.tar` for `a.tgz`."""
    stem, suffix = name[: len(name) - len(PurePath(name).suffix)], PurePath(name).suffix.lower()
    if suffix in COMPRESSED_SUFFIXES:
        return stem
    return f"{stem}.tar" if suffix in (".tgz", ".tbz", ".tbz2", ".txz", ".tzst") else name


def _by_signature(head: bytes, suffix: str, *, as_text: bool) -> FileKind | None:
    """Return the kind by the first bytes alone, or None."""
    is_text = not _has_controls(head[:512])
    if (kind := _by_table(head, suffix, is_text=is_text, as_text=as_text)) is not None:
        return kind
    if head.startswith(b"RIFF") and len(head) >= 12 and not is_text:
        return {
            b"WEBP": FileKind("WebP image", advice=PICTURE_ADVICE),
            b"WAVE": FileKind("WAV recording", advice=MEDIA_ADVICE),
            b"AVI ": FileKind("AVI video", advice=MEDIA_ADVICE),
        }.get(head[8:12], FileKind("RIFF file", advice=MEDIA_ADVICE))
    if head.startswith(b"FORM") and head[8:12] in (b"AIFF", b"AIFC"):
        return FileKind("AIFF recording", advice=MEDIA_ADVICE)
    if head[4:8] == b"ftyp" and not is_text:
        is_picture = head[8:11] in (b"hei", b"avi", b"mif")
        return FileKind("HEIF image", advice=PICTURE_ADVICE) if is_picture else MP4_SOUND if head[8:11] == b"M4A" else MP4
    if head.startswith(b"BM") and len(head) > 18 and head[6:10] == b"\0\0\0\0":
        return FileKind("BMP image", advice=PICTURE_ADVICE)
    if head.startswith(b"MZ") and b"\0" in head[:64]:
        return FileKind("program")
    if re.match(rb"\x80[\2-\5]", head) and (
        suffix in (".pkl", ".pickle", ".joblib", ".pt", ".pth", ".ckpt", ".bin") or head[2] == 0x95
    ):
        return TORCH if suffix in (".pt", ".pth", ".ckpt", ".bin") else SUFFIXES[".pkl"]
    if len(head) > 10 and head[8:10] in (b'{"', b"{ ") and int.from_bytes(head[:8], "little") < 1 << 27 and head[6:8] == b"\0\0":
        return SUFFIXES[".safetensors"]
    return TAR if _is_old_tar(head) else SUFFIXES[".lzma"] if suffix == ".lzma" and head.startswith(b"\x5d\0\0") else None


def _by_table(head: bytes, suffix: str, *, is_text: bool, as_text: bool) -> FileKind | None:
    """Return the kind by the table of signatures, or None. A text may begin with the letters of a signature."""
    for offset, magic, kind in SIGNATURES:
        if head.startswith(magic, offset):
            is_named = suffix[1:] in kind.name.lower().split()
            if is_text and _is_word(magic) and not is_named and not (kind in TEXTUAL and TEXTUAL[kind].match(head)):
                continue  # It is a text that begins with these letters.
            if kind is ZIP:
                return _zip_kind(head, suffix)
            if kind is ARROW and suffix == ".feather":
                return FEATHER
            if kind.form == "bz2" and head[4:10] not in (b"1AY&SY", b"\x17rE8P\x90"):
                continue
            if kind is ARROW and offset == 8 and not head.startswith(b"\xff\xff\xff\xff"):
                continue
            if kind.form == "zst" and offset == 1 and head[0] & 0xF0 != 0x50:
                continue
            if not (as_text and kind in TEXTUAL):
                return kind
    return None


def _is_word(magic: bytes) -> bool:
    return magic.isascii() and magic.decode().isprintable()


def _has_controls(data: bytes) -> bool:
    return re.search(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]", data) is not None


def _zip_kind(head: bytes, suffix: str) -> FileKind:
    """Return the kind of a zip archive. Many programs write their documents as zip archives."""
    by_name = SUFFIXES.get(suffix)
    if by_name in (WORD, SHEET, SLIDES, EPUB, JAR, NPZ, TORCH, SUFFIXES[".keras"]):
        return by_name
    names = _zip_names(head)
    first = names[0] if names else b""
    if first == b"mimetype":
        start = head[30 + len(first) :][:100]
        return EPUB if b"epub" in start else SHEET if b"spreadsheet" in start else SLIDES if b"presentation" in start else WORD
    if any(name == b"[Content_Types].xml" or name.startswith((b"_rels/", b"docProps/")) for name in names):
        return SHEET if b"xl/" in head else SLIDES if b"ppt/" in head else WORD
    if any(name.endswith(b".iwa") or name == b"Index.zip" for name in names):
        return IWORK
    if first.endswith((b"/data.pkl", b"/.format_version", b"/constants.pkl")) or b"/code/__torch__" in head:
        return TORCH
    if first.endswith(b".npy") and suffix != ".zip":
        return NPZ
    return JAR if first.startswith(b"META-INF/") else ZIP


def _zip_names(head: bytes) -> list[bytes]:
    """Return the names of the first files in a zip archive, as far as its beginning shows the position of the next one."""
    names, at = list[bytes](), 0
    while head.startswith(b"PK\x03\x04", at) and len(head) >= at + 30:
        size, length, extra = (
            int.from_bytes(head[at + start : at + end], "little") for start, end in ((18, 22), (26, 28), (28, 30))
        )
        names.append(head[at + 30 : at + 30 + length])
        if not size and head[at + 6] & 8:  # The file's size follows its content.
            break
        at += 30 + length + extra + size
    return names


def _is_zip_behind_text(head: bytes) -> bool:
    """Return whether a file begins with a text, such as a script that extracts itself, and goes on with a zip archive."""
    text, signature, _ = head.partition(b"PK\x03\x04")
    return bool(text and signature) and not _has_controls(text) and begins_as_utf8(text)


def _is_old_tar(head: bytes) -> bool:
    """Return whether a file begins with an old tar header without a signature, judged by the checksum."""
    if len(head) < 512 or not re.fullmatch(rb" *[0-7]{1,7}[ \0]*", head[148:156]) or not head[0]:
        return False
    return int(head[148:156].strip(b" \0"), 8) == sum(head[:148]) + 8 * 32 + sum(head[156:512])


def _is_clean(head: bytes, encoding: TextEncoding) -> bool:
    return encoding.name == "utf-8" and not _has_controls(head)


def _decode(head: bytes, encoding: TextEncoding) -> str:
    """Return the text of the first bytes. Their last character may be incomplete."""
    return head.decode(encoding.name, errors="ignore").removeprefix("\ufeff")


def _by_text(start: str, by_name: FileKind | None, *, is_text_named: bool) -> FileKind:
    """Return the kind of a text by its beginning and its name."""
    begins = start.lstrip()  # also removes record separators
    markup = _markup_kind(begins)
    if markup is not None:
        return markup
    if by_name in (HTML, XML, MHTML, NOTEBOOK):
        return by_name
    if by_name is CSV:
        return CSV
    if NOTEBOOK_START.match(begins):
        return NOTEBOOK
    if MAIL_START.match(begins):
        return MHTML if SAVED_PAGE.search(begins[:4000]) else MAILBOX
    form = json_kind(begins, is_named=by_name is JSON_LINES)
    if by_name is JSON_LINES:
        return form or JSON_LINES
    if form is not None and not is_text_named:
        return form
    if form is not None:
        return replace(
            PLAIN, warning="is read as plain text, but begins like JSON. To read its records, give it a name that ends in .jsonl"
        )
    return PLAIN


def _markup_kind(begins: str) -> FileKind | None:
    """Return HTML or XML if a text begins like one, after comments."""
    begins = re.sub(r"\A(?:<!--.{0,4000}?-->\s*)+", "", begins, flags=re.DOTALL)
    if re.match(r"<(!doctype\s+html|html|head|body)\b", begins, re.IGNORECASE):
        return HTML
    if not (begins.startswith(("<?xml", "<!DOCTYPE", "<svg", "<mediawiki")) or NAMESPACE.match(begins)):
        return None
    if begins.startswith("<mediawiki"):
        return WIKI
    return HTML if re.search(r"<html\b", begins[:4000], re.IGNORECASE) else XML

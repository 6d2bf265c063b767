"""A worker's part of the work: records to documents, documents to token ids."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from gpt_pretrain.prepare.items import FIELD_MISSING, LONGEST_RECORD, OPEN, PART, REJECTED, ROW, WHOLE, Bad, Encoded, Item
from gpt_pretrain.tokenizers.base import Tokenizer, token_byte_lengths, token_itemsize
from gpt_pretrain.tokenizers.build import build_tokenizer

EXCERPT = 100  # characters of a bad record that are kept
# Behind a letter or a digit a token of any encoding here ends before one of these: no pattern joins what stands on both sides.
# The apostrophe is not among them, for o200k_base takes "don't" as one.
CUT_BEFORE = frozenset(" \t\n\r" + '!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~' + "\uff0c\u3002\u3001\uff01\uff1f\uff1b\uff1a")

tokenizer_of = functools.cache(build_tokenizer)


@functools.cache
def byte_lengths_of(tokenizer_name: str) -> np.ndarray:
    """How many bytes of text each token of a tokenizer stands for."""
    return token_byte_lengths(tokenizer_of(tokenizer_name))


class BadRecord(Exception):
    """A record that is left out: the reason, and what exactly is wrong."""


def encode(items: list[Item], tokenizer_name: str, text_field: str) -> Encoded:
    """The documents in items as token ids."""
    batch = _Batch(tokenizer_of(tokenizer_name))
    for item in items:
        if isinstance(item.content, Bad):
            batch.reject(item.content, in_document=not item.begins)
        elif isinstance(item.content, str):
            batch.add_part(item.content, begins=item.begins, ends=item.ends)
        else:
            for number, record in _records(item):
                try:
                    batch.add(_text(record, text_field, of_line=isinstance(item.content, bytes)))
                except BadRecord as error:
                    reason, detail = error.args
                    batch.reject(Bad(item.file, number, reason, detail, _excerpt(record)))
    return batch.encoded()


def split_point(text: str, start: int = 0) -> int:
    """Where the part of a text that begins at start ends, if PART characters or more are left of it.

    Encoding both sides gives the same as encoding the whole. A text that has no such place, as a genome may, is divided after
    PART characters, and its tokens there may be others than the whole's.
    """
    for place in range(start + PART, start, -1):
        if text[place] in CUT_BEFORE and text[place - 1].isalnum():
            return place
    return start + PART


def parts(text: str) -> Iterator[str]:
    """A text in parts that are encoded one by one; where it is divided depends on nothing but the text."""
    start = 0
    while len(text) - start > PART:
        end = split_point(text, start)
        yield text[start:end]
        start = end
    yield text[start:] if start else text


def chained(before: bytes, part: bytes) -> bytes:
    """The hash of several parts of a document from that of all but the last and that of the last: 16 bytes each."""
    return hashlib.blake2b(before + part, digest_size=16).digest()


class _Batch:
    """Documents that are being encoded."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[bytes] = []
        self._rows: list[tuple[bytes, int, int, int]] = []
        self._result = Encoded()
        self._kind = f"<u{token_itemsize(tokenizer.vocab_size)}"
        self._end = np.array([tokenizer.eos_id], self._kind).tobytes()

    def add(self, text: str) -> None:
        """Take a whole document.

        Raises:
            BadRecord: when it is not Unicode text; nothing of it has been taken then.
        """
        try:
            if not text.isascii():
                text.encode()
        except UnicodeEncodeError as error:
            raise BadRecord("not UTF-8", f"half a surrogate pair at character {error.start}") from error
        taken = 0
        for part in parts(text):
            begins, taken = taken == 0, taken + len(part)
            self.add_part(part, begins=begins, ends=taken == len(text))

    def add_part(self, text: str, *, begins: bool = True, ends: bool = True) -> None:
        """Take a document, or the next part of one."""
        self._result.records += ends
        if begins and ends and not text.strip():
            self._result.empty += 1
            return
        ids, data = self._tokenizer.encode_ordinary(text), text.encode()
        self._tokens.append(ids.astype(self._kind).tobytes())
        if ends:
            self._tokens.append(self._end)
        digest = hashlib.blake2b(data, digest_size=16).digest()
        self._rows.append((digest, len(ids) + ends, len(data), WHOLE if ends else OPEN))

    def reject(self, bad: Bad, *, in_document: bool = False) -> None:
        """Note a record that is left out, and if it had been begun, that the row before is no part of a document."""
        self._result.records += 1
        self._result.bad.append(bad)
        if in_document:
            self._rows.append((b"", 0, 0, REJECTED))

    def encoded(self) -> Encoded:
        """All that has been taken."""
        self._result.tokens = b"".join(self._tokens)
        self._result.rows = np.array(self._rows, ROW)
        return self._result


def _records(item: Item) -> Iterator[tuple[int, Any]]:
    """The records of an item and their numbers; lines with nothing in them are none."""
    if isinstance(item.content, list):
        yield from enumerate(item.content, start=item.first)
        return
    assert isinstance(item.content, bytes), "texts are no records"
    for number, line in enumerate(item.content.split(b"\n"), start=item.first):
        if line and not line.isspace():
            yield number, line


def _text(record: Any, text_field: str, *, of_line: bool) -> str:
    """The text of a record: of a line of JSON, as bytes, or of a value from a table.

    Raises:
        BadRecord: when there is none.
    """
    if of_line:
        if len(record) > LONGEST_RECORD:  # as the reader judges those that are longer than what it holds at once
            raise BadRecord("too long", f"more than {LONGEST_RECORD:,} bytes")
        try:
            fields = json.loads(record.decode())
        except UnicodeDecodeError as error:
            raise BadRecord("not UTF-8", f"{error.reason} at byte {error.start}") from error
        except (ValueError, RecursionError) as error:
            raise BadRecord("broken JSON", str(error)) from error
        if isinstance(fields, list):
            raise BadRecord("no object", f"a JSON array; one object a line is wanted, with the field {text_field}")
        if not isinstance(fields, dict):
            raise BadRecord("no object", f"a JSON {type(fields).__name__} instead of an object with the field {text_field}")
        if text_field not in fields:
            raise BadRecord(FIELD_MISSING, f"no {text_field} among {', '.join(list(fields)[:10]) or 'no fields at all'}")
        record = fields[text_field]
    if isinstance(record, bytes):
        try:
            record = record.decode()
        except UnicodeDecodeError as error:
            raise BadRecord("not UTF-8", f"{error.reason} at byte {error.start}") from error
    if not isinstance(record, str):
        raise BadRecord("text no string", f"{type(record).__name__} instead of a string")
    return record


def _excerpt(record: Any) -> str:
    text = record[: 4 * EXCERPT].decode(errors="replace") if isinstance(record, bytes) else str(record)
    return text[:EXCERPT].encode(errors="replace").decode()

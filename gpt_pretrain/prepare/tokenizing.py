"""Turn records into documents and documents into token ids: the work of one worker process."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from gpt_pretrain.prepare.chunks import (
    COMPLETE,
    CONTINUES,
    FIELD_MISSING,
    LONGEST_RECORD,
    REJECTED,
    ROW,
    Chunk,
    EncodedBatch,
    RejectedRecord,
    split_text,
)
from gpt_pretrain.system.reading import DamagedFileError, check_json_values
from gpt_pretrain.tokenizers.base import Tokenizer, token_byte_lengths, token_itemsize
from gpt_pretrain.tokenizers.build import build_tokenizer

EXCERPT = 100  # Characters of a rejected record that are kept.
# Of a JSON line. Each may take 80 bytes of memory and two in the file, of which an archive needs a hundredth.
MAX_VALUES = 1_000_000

cached_tokenizer = functools.cache(build_tokenizer)


@functools.cache
def cached_byte_lengths(tokenizer_name: str) -> np.ndarray:
    """Return the number of bytes of text that each token of a tokenizer represents."""
    return token_byte_lengths(cached_tokenizer(tokenizer_name))


class InvalidRecordError(Exception):
    """Raised for a record without usable text, with the reason and the detail."""


def encode_batch(chunks: list[Chunk], tokenizer_name: str, text_field: str) -> EncodedBatch:
    """Encode the documents of several chunks."""
    encoder = _DocumentEncoder(cached_tokenizer(tokenizer_name))
    for chunk in chunks:
        if isinstance(chunk.content, RejectedRecord):
            encoder.reject(chunk.content, in_document=not chunk.begins)
        elif isinstance(chunk.content, str):
            encoder.add_part(chunk.content, begins=chunk.begins, ends=chunk.ends)
        else:
            for number, record in _records(chunk):
                try:
                    encoder.add(_text(record, text_field, is_json=isinstance(chunk.content, bytes)))
                except InvalidRecordError as error:
                    reason, detail = error.args
                    encoder.reject(RejectedRecord(chunk.file, number, reason, detail, _excerpt(record)))
    return encoder.finish()


class _DocumentEncoder:
    """Encodes documents one by one into an EncodedBatch."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[bytes] = []
        self._rows: list[tuple[bytes, int, int, int]] = []
        self._result = EncodedBatch()
        self._dtype = f"<u{token_itemsize(tokenizer.vocab_size)}"
        self._end_of_text = np.array([tokenizer.eos_id], self._dtype).tobytes()

    def add(self, text: str) -> None:
        """Encode a whole document.

        Raises:
            InvalidRecordError: If the text contains half a surrogate pair; nothing has been encoded then.
        """
        try:
            if not text.isascii():
                text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRecordError("not UTF-8", f"half a surrogate pair at character {error.start}") from error
        length = 0
        for part in split_text(text):
            begins, length = length == 0, length + len(part)
            self.add_part(part, begins=begins, ends=length == len(text))

    def add_part(self, text: str, *, begins: bool = True, ends: bool = True) -> None:
        """Encode a document, or the next part of one."""
        self._result.records += ends
        if begins and ends and not text.strip():
            self._result.empty += 1
            return
        token_ids, data = self._tokenizer.encode_ordinary(text), text.encode()
        self._tokens.append(token_ids.astype(self._dtype).tobytes())
        if ends:
            self._tokens.append(self._end_of_text)
        digest = hashlib.blake2b(data, digest_size=16).digest()
        self._rows.append((digest, len(token_ids) + ends, len(data), COMPLETE if ends else CONTINUES))

    def reject(self, record: RejectedRecord, *, in_document: bool = False) -> None:
        """Add a rejected record; `in_document` discards the parts of it that have been encoded."""
        self._result.records += 1
        self._result.rejected.append(record)
        if in_document:
            self._rows.append((b"", 0, 0, REJECTED))

    def finish(self) -> EncodedBatch:
        """Return everything that was added."""
        self._result.tokens = b"".join(self._tokens)
        self._result.rows = np.array(self._rows, ROW)
        return self._result


def _records(chunk: Chunk) -> Iterator[tuple[int, Any]]:
    """Yield the records of a chunk with their numbers, without blank lines."""
    if isinstance(chunk.content, list):
        yield from enumerate(chunk.content, start=chunk.first)
        return
    assert isinstance(chunk.content, bytes), "a chunk of text has no records"
    for number, line in enumerate(chunk.content.split(b"\n"), start=chunk.first):
        if line and not line.isspace():
            yield number, line


def _text(record: Any, text_field: str, *, is_json: bool) -> str:
    """Return the text of a record, which is either a JSON line or a value from a table.

    Raises:
        InvalidRecordError: If it has none.
    """
    value = _json_value(record, text_field) if is_json else record
    if isinstance(value, bytes):
        value = _decode(value)
    if not isinstance(value, str):
        raise InvalidRecordError("text no string", f"{type(value).__name__} instead of a string")
    return value


def _json_value(line: bytes, text_field: str) -> Any:
    """Return the field of a JSON line that should contain the text.

    Raises:
        InvalidRecordError: If the line is not a JSON object with this field.
    """
    if len(line) > LONGEST_RECORD:  # The reader rejects only lines that are longer than what it buffers.
        raise InvalidRecordError("too long", f"more than {LONGEST_RECORD:,} bytes")
    text = _decode(line)
    try:
        check_json_values(line, max_values=MAX_VALUES)
        fields = json.loads(text)
    except DamagedFileError as error:
        raise InvalidRecordError("too many values", str(error)) from error
    except (ValueError, RecursionError) as error:
        raise InvalidRecordError("broken JSON", str(error)) from error
    if isinstance(fields, list):
        raise InvalidRecordError("no object", f"a JSON array; each line must be one object with the field {text_field}")
    if not isinstance(fields, dict):
        raise InvalidRecordError("no object", f"a JSON {type(fields).__name__} instead of an object with the field {text_field}")
    if text_field not in fields:
        present = ", ".join(name[:EXCERPT] for name in list(fields)[:10])
        raise InvalidRecordError(FIELD_MISSING, f"no field {text_field} in an object with {present or 'no fields'}")
    return fields[text_field]


def _decode(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidRecordError("not UTF-8", f"{error.reason} at byte {error.start}") from error


def _excerpt(record: Any) -> str:
    text = record[: 4 * EXCERPT].decode(errors="replace") if isinstance(record, bytes) else str(record)
    return text[:EXCERPT].encode(errors="replace").decode()

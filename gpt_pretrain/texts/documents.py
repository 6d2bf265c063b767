"""Find whole documents in a text. The reader finds where they end, and the workers divide them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property

from gpt_pretrain.system.recognition.encodings import is_blank
from gpt_pretrain.texts.chunks import Chunk, Documents, RejectedRecord
from gpt_pretrain.texts.invalid_utf8 import InvalidTexts
from gpt_pretrain.tokenizers.base import END_OF_TEXT

MARKER = END_OF_TEXT.encode()


class Separators:
    """Finds the separators between the documents of a text.

    Args:
        separators: The separators in UTF-8. If two of them match at the same position, the longer one counts.
    """

    def __init__(self, separators: Sequence[bytes]) -> None:
        self.separators = tuple(sorted(set(separators), key=len, reverse=True))
        self.longest = max(map(len, self.separators))

    @cached_property
    def _pattern(self) -> re.Pattern[bytes]:
        return re.compile(b"|".join(map(re.escape, self.separators)))

    def find(self, data: bytes, begin: int, end: int) -> tuple[int, bytes] | None:
        """Return the position of the first separator that begins between two positions, and the separator."""
        if len(self.separators) == 1:
            position = data.find(self.separators[0], begin)
            return (position, self.separators[0]) if 0 <= position < end else None
        found = self._pattern.search(data, begin)
        return (found.start(), found[0]) if found is not None and found.start() < end else None

    def whole_documents(self, data: bytes, begin: int, end: int) -> tuple[int, int]:
        """Return the number of separators that begin between two positions, and the end of the last one."""
        if self.separators == (MARKER,):  # Two markers cannot overlap.
            last = data.rfind(MARKER, begin, end + len(MARKER) - 1)
            return (0, begin) if last < 0 else (data.count(MARKER, begin, last) + 1, last + len(MARKER))
        count, last = 0, begin
        for found in self._pattern.finditer(data, begin):
            if found.start() >= end:
                break
            count, last = count + 1, found.end()
        return count, last

    def split(self, data: bytes) -> tuple[list[bytes], list[bytes]]:
        """Return the documents in a text that ends with a separator, and the separator behind each of them."""
        if len(self.separators) == 1:
            documents = data.split(self.separators[0])
            return documents[:-1], [self.separators[0]] * (len(documents) - 1)
        return self._pattern.split(data)[:-1], self._pattern.findall(data)


def divide_documents(chunk: Chunk, invalid: InvalidTexts | None = None) -> Iterator[Chunk]:
    """Divide a chunk of documents, or of a part of one, into chunks with the decoded text. Yield any other chunk unchanged.

    Args:
        invalid: Explains documents that are not UTF-8. One object serves all chunks.
    """
    if not isinstance(chunk.content, Documents):
        yield chunk
        return
    if not chunk.content.separators:
        yield replace(chunk, content=chunk.content.data.decode())
        return
    invalid, position = invalid or InvalidTexts(), chunk.end.offset - len(chunk.content.data)
    documents, marks = Separators(chunk.content.separators).split(chunk.content.data)
    for number, (document, mark) in enumerate(zip(documents, marks, strict=True), start=chunk.first):
        content, blank = _decode(document, position, chunk.file, number, invalid)
        position += len(document) + len(mark)
        end = replace(chunk.end, offset=position, record=number)
        yield replace(chunk, first=number, content=content, end=end, at_marker=mark == MARKER, blank=blank)


def _decode(document: bytes, position: int, file: str, number: int, invalid: InvalidTexts) -> tuple[str | RejectedRecord, bool]:
    """Return the text of a document, or the record that says why it is left out; and whether the text is blank."""
    try:
        text = document.decode()
    except UnicodeDecodeError as error:
        return RejectedRecord(file, number, "not UTF-8", invalid.explain(document, error, position, file)), False
    return text, is_blank(text)

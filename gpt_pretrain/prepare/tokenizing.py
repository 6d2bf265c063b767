"""Turn records into documents and documents into token ids: the work of one worker process."""

from __future__ import annotations

import codecs
import functools
import hashlib

import numpy as np

from gpt_pretrain.prepare.encoded_batch import COMPLETE, CONTINUES, REJECTED, ROW, EncodedBatch
from gpt_pretrain.system.recognition.encodings import count_controls, is_blank
from gpt_pretrain.texts.chunks import BATCH, Chunk, Documents, RejectedRecord
from gpt_pretrain.texts.documents import MARKER, Separators, divide_documents
from gpt_pretrain.texts.invalid_utf8 import InvalidTexts
from gpt_pretrain.texts.records.record_text import InvalidRecordError, chunk_records, excerpt, record_text
from gpt_pretrain.tokenizers.base import Tokenizer, token_byte_lengths, token_itemsize
from gpt_pretrain.tokenizers.build import build_tokenizer
from gpt_pretrain.tokenizers.fast_encoding.fast_encoder import COMPARED_FIRST, FastEncoder
from gpt_pretrain.tokenizers.fitting import with_end_of_text
from gpt_pretrain.tokenizers.splitting import PartSizes, encode_part, split_text
from gpt_pretrain.tokenizers.unknown import UnknownText


@functools.cache
def cached_tokenizer(name: str) -> Tokenizer:
    """Build the tokenizer of a corpus, with an end of text if it can have one."""
    return with_end_of_text(build_tokenizer(name))


@functools.cache
def cached_encoder(tokenizer_name: str, *, use_library: bool) -> FastEncoder:
    """Build the encoder of a corpus. Its vocabulary is compared with the tokenizer's while the encoding is running."""
    return FastEncoder(cached_tokenizer(tokenizer_name), use_library=use_library, compare_vocabulary=False)


@functools.cache
def cached_byte_lengths(tokenizer_name: str) -> np.ndarray:
    """Return the bytes of text behind each token of a tokenizer. The smallest type keeps the table in the processor's cache."""
    lengths = token_byte_lengths(cached_tokenizer(tokenizer_name))
    return lengths.astype(np.min_scalar_type(int(lengths.max())))


def encode_batch(
    chunks: list[Chunk], tokenizer_name: str, text_field: str, *, as_is: bool = False, fast: bool = False
) -> EncodedBatch:
    """Encode the documents of several chunks.

    Args:
        as_is: Keep the line ends of records, and take end-of-text markers in them as text.
        fast: Use the fast library.

    Raises:
        DifferentIdsError: If the fast library gives other ids than the tokenizer for a text.
    """
    fast_encoder = cached_encoder(tokenizer_name, use_library=fast)
    fast_encoder.compare_next(COMPARED_FIRST if chunks and _is_first(chunks[0]) else 0)
    encoder = _DocumentEncoder(cached_tokenizer(tokenizer_name), fast_encoder, divide=not as_is)
    for chunk in chunks:
        if isinstance(chunk.content, RejectedRecord):
            encoder.reject(chunk.content, in_document=not chunk.begins)
        elif isinstance(chunk.content, Documents) and chunk.content.separators:
            encoder.add_documents(chunk)
        elif isinstance(chunk.content, Documents | str):
            data = chunk.content.data if isinstance(chunk.content, Documents) else chunk.content.encode()
            encoder.add_part(data, begins=chunk.begins, ends=chunk.ends, at_marker=chunk.at_marker, blank=chunk.blank)
        else:
            for number, record in chunk_records(chunk):
                try:
                    is_json = isinstance(chunk.content, bytes)
                    encoder.add(record_text(record, text_field, is_json=is_json, as_is=as_is))
                except InvalidRecordError as error:
                    reason = error.reason_in(chunk, record)
                    encoder.reject(RejectedRecord(chunk.file, number, reason, error.detail, excerpt(record)))
    return encoder.finish()


def _is_first(chunk: Chunk) -> bool:
    """Return whether a chunk is the first one of its inputs."""
    return chunk.first == 1 and chunk.begins and chunk.end.file == chunk.end.member == 0


class _DocumentEncoder:
    """Encode documents into an EncodedBatch, one by one, or short ones together if the encoder can do that.

    Args:
        encoder: Gives the same ids as the tokenizer's `encode_ordinary`.
        divide: End documents at end-of-text markers in their text.
    """

    def __init__(self, tokenizer: Tokenizer, encoder: FastEncoder, *, divide: bool) -> None:
        self._tokenizer, self._encoder, self._divide = tokenizer, encoder, divide
        # Bytes of a document that is encoded together with others. Longer ones may consist of several parts. Without `divide`, a
        # document may contain a marker.
        self._short = PartSizes.of(tokenizer).part if divide and encoder.takes_documents else 0
        self._waiting: list[bytes] = []  # short documents
        self._waiting_bytes = 0
        self._tokens = bytearray()  # A list of parts would hold a long document twice while it is joined.
        self._rows: list[np.ndarray] = []
        self._row_tuples: list[tuple[bytes, int, int, int]] = []  # the rows after these
        self._result = EncodedBatch()
        self._unknown, self._invalid = UnknownText(tokenizer), InvalidTexts()
        self._dtype = np.dtype(f"<u{token_itemsize(tokenizer.vocab_size)}")
        self._end_of_text = np.array([] if tokenizer.eos_id is None else [tokenizer.eos_id], self._dtype)

    def add(self, text: str) -> None:
        """Encode a record: a document, or several with end-of-text markers between them.

        Raises:
            InvalidRecordError: If the text contains half a surrogate pair. Nothing of it has then been encoded.
        """
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRecordError("not UTF-8", f"half a surrogate pair at character {error.start}") from error
        *documents, last = data.split(MARKER) if self._divide else [data]
        for document in documents:
            self._add_document(document, at_marker=True)
        if last or not documents:  # No document follows a marker at the end of a record.
            self._add_document(last, at_marker=False)

    def add_documents(self, chunk: Chunk) -> None:
        """Encode a chunk of whole documents."""
        assert isinstance(chunk.content, Documents), "the chunk has documents"
        data = chunk.content.data
        try:
            if not data.isascii():
                data.decode()
        except UnicodeDecodeError:
            for part in divide_documents(chunk, self._invalid):
                if isinstance(part.content, RejectedRecord):
                    self.reject(part.content)
                else:
                    assert isinstance(part.content, str), "a document is a text"
                    self._add_document(part.content.encode(), at_marker=part.at_marker)
            return
        documents, marks = Separators(chunk.content.separators).split(data)
        if chunk.content.separators == (MARKER,) and self._are_short_texts(documents, data):
            self._encode_waiting()
            self._result.records += len(documents)
            self._result.markers += len(documents)
            self._encode_together(documents, data)
            return
        for document, mark in zip(documents, marks, strict=True):
            self._add_document(document, at_marker=mark == MARKER)

    def _are_short_texts(self, documents: list[bytes], data: bytes) -> bool:
        """Return whether documents are short enough to be encoded together, and none of them is blank.

        Args:
            data: All documents, each followed by an end-of-text marker.
        """
        lengths = np.fromiter(map(len, documents), np.int64, len(documents))
        if lengths.max() > self._short:
            return False
        ends = (lengths + len(MARKER)).cumsum() - len(MARKER)
        firsts = np.frombuffer(data, np.uint8)[ends - lengths]
        is_text = (lengths > 0) & (firsts > ord(" ")) & (firsts < 0x80)  # judged by its first character
        return not any(_is_blank(documents[index]) for index in np.flatnonzero(~is_text).tolist())

    def _add_document(self, data: bytes, *, at_marker: bool) -> None:
        if _is_blank(data):
            self.add_part(b"", at_marker=at_marker, blank=True)
        elif len(data) <= self._short:
            self._result.records += 1
            self._result.markers += at_marker
            self._waiting.append(data)
            self._waiting_bytes += len(data)
            if self._waiting_bytes >= BATCH:
                self._encode_waiting()
        else:
            text, length = data.decode(), 0
            for part in split_text(text, self._tokenizer):
                begins, length = length == 0, length + len(part)
                ends = length == len(text)
                self.add_part(part.encode(), begins=begins, ends=ends, at_marker=at_marker and ends)

    def add_part(
        self, data: bytes, *, begins: bool = True, ends: bool = True, at_marker: bool = False, blank: bool = False
    ) -> None:
        """Encode a document, or the next part of one.

        Args:
            blank: Whether the document has been only white space so far. If that holds to its end, it is left out.
        """
        self._result.records += ends
        self._result.markers += at_marker
        if not (ends and blank):
            self._encode_waiting()
            self._encode_alone(data, begins=begins, ends=ends)
            return
        self._result.empty += 1
        if not begins:
            self._encode_waiting()
            self._row_tuples.append((b"", 0, 0, REJECTED))

    def reject(self, record: RejectedRecord, *, in_document: bool = False) -> None:
        """Add a rejected record or the rest of a file that fails. `in_document` discards the encoded parts of the record."""
        self._result.reject(record)
        if in_document:
            self._encode_waiting()
            self._row_tuples.append((b"", 0, 0, REJECTED))

    def finish(self) -> EncodedBatch:
        """Encode the waiting documents, and return the batch."""
        self._encode_waiting()
        self._close_rows()
        self._result.tokens = np.frombuffer(self._tokens, self._dtype)
        self._result.rows = np.concatenate([*self._rows, np.empty(0, ROW)])
        self._result.unknown, self._result.unknown_example = self._unknown.tokens, self._unknown.example
        return self._result

    def _encode_waiting(self) -> None:
        """Encode the short documents that have been added."""
        documents, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if documents:
            self._encode_together(documents, MARKER.join([*documents, b""]))

    def _encode_together(self, documents: list[bytes], data: bytes) -> None:
        """Encode documents together, if that is possible.

        Args:
            data: All documents, each followed by an end-of-text marker.
        """
        encoded = self._encoder.encode_documents(documents, data)
        if encoded is None or self._unknown.is_in(encoded[0]):
            for document in documents:
                self._encode_alone(document)
            return
        token_ids, lengths = encoded
        self._tokens += token_ids.astype(self._dtype).data
        self._count_controls(data)  # A marker has no control characters.
        rows = np.empty(len(documents), ROW)
        rows["hash"] = np.frombuffer(b"".join(map(_digest, documents)), ROW["hash"])
        rows["tokens"], rows["bytes"], rows["state"] = lengths, list(map(len, documents)), COMPLETE
        self._close_rows()
        self._rows.append(rows)

    def _encode_alone(self, data: bytes, *, begins: bool = True, ends: bool = True) -> None:
        token_ids = self._encoder.encode_bytes(data)
        if token_ids is None:
            token_ids = encode_part(data.decode(), self._tokenizer, continues=not begins)
        self._tokens += token_ids.astype(self._dtype).data
        if self._unknown.is_in(token_ids):
            self._unknown.add(data.decode(), token_ids)
        if ends:
            self._tokens += self._end_of_text.data
        self._count_controls(data)
        length = len(token_ids) + ends * len(self._end_of_text)
        self._row_tuples.append((_digest(data), length, len(data), COMPLETE if ends else CONTINUES))

    def _count_controls(self, data: bytes) -> None:
        if controls := count_controls(data):
            self._result.controls += controls
            self._result.nuls += data.count(b"\0")
        self._result.marks += data.count(codecs.BOM_UTF8)

    def _close_rows(self) -> None:
        if self._row_tuples:
            self._rows.append(np.array(self._row_tuples, ROW))
            self._row_tuples = []


def _is_blank(data: bytes) -> bool:
    """Return whether a text in UTF-8 is empty or consists of white space. For most texts, the first characters decide."""
    return is_blank(data[:16].decode(errors="ignore")) and is_blank(data.decode())


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()

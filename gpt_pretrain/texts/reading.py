"""Read inputs from any position and split them into chunks of records; one process reads for all workers."""

from __future__ import annotations

import codecs
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence

from gpt_pretrain.texts.chunks import BATCH, DAMAGED_ARCHIVE, LONGEST_RECORD, Chunk, Cursor, ReadPosition
from gpt_pretrain.texts.decompression import DamagedArchiveError, read_blocks
from gpt_pretrain.texts.inputs import CorpusInputs, InputFile, check_unchanged
from gpt_pretrain.texts.tables import read_dataset, read_parquet
from gpt_pretrain.tokenizers.base import Tokenizer
from gpt_pretrain.tokenizers.splitting import split_start, split_text

MAX_LINES = 8192  # Of a chunk. A rejected line takes 500 bytes of memory, and as little as two in its file.


def read_inputs(inputs: CorpusInputs, tokenizer: Tokenizer, *, start: ReadPosition) -> Iterator[Chunk]:
    """Yield all chunks of the inputs from a position on.

    Args:
        tokenizer: Long documents are split where it ends a token.

    Raises:
        UserError: If a file has changed since it was listed, a package is missing, or the dataset cannot be read.
        OSError: If a file cannot be read.
    """
    if inputs.dataset is not None:
        yield from read_dataset(inputs.dataset, inputs.text_field, start=start)
    else:
        yield from _read_files(inputs.files, inputs, tokenizer, start)


def batch_chunks(chunks: Iterable[Chunk]) -> Iterator[list[Chunk]]:
    """Collect chunks into lists of about BATCH bytes of text."""
    waiting: list[Chunk] = []
    size = 0
    for chunk in chunks:
        waiting.append(chunk)
        size += chunk.size
        if size >= BATCH:
            yield waiting
            waiting, size = [], 0
    if waiting:
        yield waiting


def split_lines(blocks: Iterable[bytes], cursor: Cursor) -> Iterator[Chunk]:
    """Split the content of a file into chunks of whole lines."""
    rest = bytearray()
    overlong = 0  # Bytes so far of a line that is too long.
    for block in blocks:
        if overlong:
            end = block.find(b"\n") + 1
            overlong += end or len(block)
            if not end:
                continue
            yield _reject_line(cursor, overlong)
            overlong, block = 0, block[end:]
        if end := block.rfind(b"\n") + 1:
            rest += block[:end]
            yield from _take_lines(cursor, bytes(rest))
            rest = bytearray(block[end:])
        else:
            rest += block
        if len(rest) > LONGEST_RECORD:
            overlong, rest = len(rest), bytearray()
    if overlong:
        yield _reject_line(cursor, overlong)
    elif rest:
        yield from _take_lines(cursor, bytes(rest))


def split_documents(blocks: Iterable[bytes], cursor: Cursor, separator: str | None, tokenizer: Tokenizer) -> Iterator[Chunk]:
    """Split the content of a file at the separators; long documents are split further, as `split_text` would."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    text, problem, offset = "", "", cursor.offset
    for data, skipped, ends in _split_at_separators(blocks, separator, in_document=cursor.in_document):
        if not problem:
            try:
                text += decoder.decode(data, ends)
            except UnicodeDecodeError as error:
                problem = f"{error.reason} near byte {offset + error.start}"
        offset += len(data) + skipped
        if not ends:
            *parts, text = split_start(text, tokenizer)
            for part in parts:
                yield cursor.part(part, ends=False)
            continue
        if problem:
            yield cursor.reject("not UTF-8", problem, size=offset - cursor.offset)
        else:
            *parts, text = split_text(text, tokenizer)
            for part in parts:
                yield cursor.part(part, ends=False)
            yield cursor.part(text, ends=True, end=offset)
        decoder.reset()
        text, problem = "", ""


def _read_files(files: Sequence[InputFile], inputs: CorpusInputs, tokenizer: Tokenizer, start: ReadPosition) -> Iterator[Chunk]:
    bytes_before = sum(file.size for file in files[: start.file])
    for index in range(start.file, len(files)):
        file = files[index]
        check_unchanged([file])
        yield from _read_file(file, inputs, tokenizer, start if index == start.file else ReadPosition(index), bytes_before)
        bytes_before += file.size
        check_unchanged([file])


def _read_file(
    file: InputFile, inputs: CorpusInputs, tokenizer: Tokenizer, start: ReadPosition, bytes_before: int
) -> Iterator[Chunk]:
    if file.form == "parquet":
        yield from read_parquet(file, inputs.text_field, start=start, bytes_before=bytes_before)
        return
    with open(file.path, "rb") as stream:
        cursor = Cursor(file.path, start, bytes_read=lambda: bytes_before + stream.tell())
        blocks = _drop_byte_order_mark(read_blocks(file, stream, start=start.offset), cursor)
        try:
            if file.form == "lines":
                yield from split_lines(blocks, cursor)
            else:
                yield from split_documents(blocks, cursor, inputs.separator, tokenizer)
        except DamagedArchiveError as error:
            yield cursor.reject(DAMAGED_ARCHIVE, str(error))


def _drop_byte_order_mark(blocks: Iterator[bytes], cursor: Cursor) -> Iterator[bytes]:
    if cursor.offset == 0 and (first := next(blocks, b"")):
        mark = codecs.BOM_UTF8 if first.startswith(codecs.BOM_UTF8) else b""
        cursor.offset = len(mark)
        yield first.removeprefix(mark)
    yield from blocks


def _split_at_separators(
    blocks: Iterable[bytes], separator: str | None, *, in_document: bool
) -> Iterator[tuple[bytes, int, bool]]:
    """Yield slices of documents, the number of separator bytes after each slice, and whether the document ends there."""
    mark = (separator or "").encode()
    rest, document_open, any_end = b"", in_document, False
    for block in blocks:
        *complete, rest = (rest + block).split(mark) if mark else [rest + block]
        for data in complete:
            yield data, len(mark), True
        document_open, any_end = document_open and not complete, any_end or bool(complete)
        kept = len(mark) - 1 if mark else 0  # Bytes that may be the beginning of a separator.
        if len(rest) > kept:
            yield rest[: len(rest) - kept], 0, False
            rest, document_open = rest[len(rest) - kept :], True
    if rest or document_open or not any_end:  # No document follows a separator at the end of a file.
        yield rest, 0, True


def _take_lines(cursor: Cursor, data: bytes) -> Iterator[Chunk]:
    """Yield whole lines as one chunk, or as several if they are very short, since each line takes memory of its own."""
    lines = io.BytesIO(data)
    while chunk := b"".join(itertools.islice(lines, MAX_LINES)):
        yield cursor.records(chunk, size=len(chunk), count=chunk.count(b"\n") + (not chunk.endswith(b"\n")))


def _reject_line(cursor: Cursor, size: int) -> Chunk:
    return cursor.reject("too long", f"more than {LONGEST_RECORD:,} bytes", size=size)

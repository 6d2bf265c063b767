"""Read inputs from any position, and split them into chunks of records. One process reads for all workers."""

from __future__ import annotations

import codecs
import io
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence

from gpt_pretrain.system.line_ends import unify_line_ends, unify_line_ends_in_blocks
from gpt_pretrain.system.recognition.file_kinds import ARRAY, LINES, PARQUET, ROWS, TEXT
from gpt_pretrain.texts.chunks import (
    BATCH,
    DAMAGED_ARCHIVE,
    LONGEST_RECORD,
    MAX_LINES,
    NOT_UNPACKED,
    NOT_UTF8_FILE,
    NOTHING_TO_READ,
    UNREADABLE,
    Chunk,
    Cursor,
    ReadPosition,
)
from gpt_pretrain.texts.containers.blocks import peek
from gpt_pretrain.texts.containers.contents import Content, open_contents
from gpt_pretrain.texts.containers.decompression import (
    MANY_RECORDS,
    RECORD,
    ContentLimit,
    DamagedArchiveError,
    NothingToReadError,
    PackedFileError,
    drop_bytes,
)
from gpt_pretrain.texts.documents import MARKER, Separators
from gpt_pretrain.texts.inputs import CorpusInputs, InputFile, check_unchanged
from gpt_pretrain.texts.invalid_utf8 import InvalidTexts
from gpt_pretrain.texts.left_out import LeftOut
from gpt_pretrain.texts.records.csv_rows import split_rows
from gpt_pretrain.texts.records.json_values import split_values
from gpt_pretrain.texts.records.tables import read_dataset, read_parquet
from gpt_pretrain.tokenizers.base import END_OF_TEXT, Tokenizer
from gpt_pretrain.tokenizers.splitting import split_start, split_text

ESCAPED = b"\\u00"  # how a character of a marker may begin in JSON


def read_inputs(inputs: CorpusInputs, tokenizer: Tokenizer, *, start: ReadPosition) -> Iterator[Chunk]:
    """Yield all chunks of the inputs from a position on.

    Args:
        tokenizer: Long documents are split at the end of one of its tokens.

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


def split_documents(
    blocks: Iterable[bytes],
    cursor: Cursor,
    separator: str | None,
    tokenizer: Tokenizer,
    *,
    invalid: InvalidTexts | None = None,
) -> Iterator[Chunk]:
    """Split the content of a file at separators and end-of-text markers. Long documents are split further by `split_text`.

    Args:
        blocks: The content from the cursor's offset on, with unified line ends.
        invalid: Explains documents that are not UTF-8. One object serves all contents.
    """
    invalid = invalid or InvalidTexts()
    separators = Separators([MARKER, *([unify_line_ends(separator).encode()] if separator else [])])
    _, blocks = peek(iter(blocks))  # Reading the first block moves the cursor over a byte order mark.
    decoder = codecs.getincrementaldecoder("utf-8")()
    text, problem, offset = "", "", cursor.offset
    for data, mark, ends in _split_at_separators(blocks, separators, cursor):
        if isinstance(data, Chunk):
            offset = cursor.offset
            yield data
            continue
        if not problem:
            try:
                text += decoder.decode(data, ends)
            except UnicodeDecodeError as error:
                problem = invalid.explain(data, error, offset, cursor.file)
        offset += len(data) + len(mark)
        if not ends:
            *parts, text = split_start(text, tokenizer)
            for part in parts:
                yield cursor.part(part, ends=False)
            continue
        if problem:
            is_whole_file = cursor.record == 0 and not mark
            yield cursor.reject(NOT_UTF8_FILE if is_whole_file else "not UTF-8", problem, size=offset - cursor.offset)
        else:
            *parts, text = split_text(text, tokenizer)
            for part in parts:
                yield cursor.part(part, ends=False)
            yield cursor.part(text, ends=True, end=offset, at_marker=mark == MARKER)
        decoder.reset()
        text, problem = "", ""


def _read_files(files: Sequence[InputFile], inputs: CorpusInputs, tokenizer: Tokenizer, start: ReadPosition) -> Iterator[Chunk]:
    bytes_before, invalid = sum(file.size for file in files[: start.file]), InvalidTexts()
    for index in range(start.file, len(files)):
        file = files[index]
        check_unchanged([file])
        first = start if index == start.file else ReadPosition(index)
        yield from _read_file(file, inputs, tokenizer, first, bytes_before, invalid)
        bytes_before += file.size
        check_unchanged([file])


def _read_file(
    file: InputFile, inputs: CorpusInputs, tokenizer: Tokenizer, start: ReadPosition, bytes_before: int, invalid: InvalidTexts
) -> Iterator[Chunk]:
    left_out = LeftOut()
    with open(file.path, "rb") as stream:
        cursor = Cursor(file.path, start, bytes_read=lambda: bytes_before + stream.tell())
        contents = open_contents(
            file.path, stream, size=file.size, left_out=left_out, as_text=inputs.as_text, text_field=inputs.text_field
        )
        try:
            for number, content in enumerate(contents):
                if number < start.member:
                    continue
                position = start if number == start.member else ReadPosition(start.file, member=number)
                cursor = Cursor(content.name, position, bytes_read=lambda: bytes_before + stream.tell())
                if content.kind.form == TEXT:
                    # Offsets count bytes after line ends are unified, so the file is read from its beginning.
                    blocks = drop_bytes(unify_line_ends_in_blocks(content.blocks()), cursor.offset)
                    blocks = _drop_byte_order_mark(blocks, cursor)
                    chunks = split_documents(blocks, cursor, inputs.separator, tokenizer, invalid=invalid)
                    yield from _limit_records(chunks, position.record, content.limit)
                else:
                    yield from read_records(content, file, cursor, inputs)
                cursor.file = file.path
        except DamagedArchiveError as error:
            reasons = {NothingToReadError: NOTHING_TO_READ, PackedFileError: NOT_UNPACKED}
            yield cursor.reject(reasons.get(type(error), DAMAGED_ARCHIVE), str(error))
        except OSError as error:
            yield cursor.reject(UNREADABLE, error.strerror or str(error))
    left_out.report(file.path)


def read_records(content: Content, file: InputFile, cursor: Cursor, inputs: CorpusInputs) -> Iterator[Chunk]:
    """Split a content of records into chunks, from the cursor's position on.

    Args:
        file: The file that contains the content.

    Raises:
        DamagedArchiveError: If the content is damaged, or has too many records for the size of its file. Everything before is
            yielded first.
        UserError: If a table has no column with the name of the text field.
    """
    yield from _limit_records(_split_records(content, file, cursor, inputs), cursor.record, content.limit)


def _split_records(content: Content, file: InputFile, cursor: Cursor, inputs: CorpusInputs) -> Iterator[Chunk]:
    form = content.kind.form
    if form == PARQUET and content.name == file.path and content.stream is not None:
        yield from read_parquet(file.path, cursor, inputs.text_field, size=file.size, limit=content.limit)
    elif form == PARQUET:
        with content.seekable(ContentLimit(file.size)) as copy:
            size = copy.seek(0, os.SEEK_END)
            yield from read_parquet(copy, cursor, inputs.text_field, size=size, limit=content.limit)
    elif form == ROWS:
        yield from split_rows(content.blocks(), cursor, inputs.text_field)
    elif form == LINES:
        yield from split_lines(_end_lines(_drop_byte_order_mark(content.blocks(cursor.offset), cursor)), cursor)
    else:
        blocks = _drop_byte_order_mark(content.blocks(cursor.offset), cursor)
        yield from split_values(blocks, cursor, is_array=form == ARRAY)


def _limit_records(chunks: Iterable[Chunk], first: int, limit: ContentLimit) -> Iterator[Chunk]:
    """Yield chunks as long as the size of the file explains their number of records.

    Args:
        first: Number of records before the first chunk.

    Raises:
        DamagedArchiveError: If there are more.
    """
    limit.take(RECORD * first, MANY_RECORDS)
    for chunk in chunks:
        limit.take(RECORD * (chunk.end.record - first + _count_within(chunk.content)), MANY_RECORDS)
        first = chunk.end.record
        yield chunk


def _count_within(content: object) -> int:
    """Count the further documents that there may be in the records of a chunk.

    A line of JSON may consist of many objects, and documents end at the markers in a text, whose characters JSON may escape.
    """
    if isinstance(content, bytes):
        return content.count(b"{") + content.count(MARKER) + content.count(ESCAPED)
    return sum(text.count(END_OF_TEXT) for text in content if isinstance(text, str)) if isinstance(content, list) else 0


def _end_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Replace carriage returns by line feeds if no line ends otherwise, as on old Macintoshes."""
    head, blocks = peek(blocks)
    if b"\r" in head and b"\n" not in head:
        return (block.replace(b"\r", b"\n") for block in blocks)
    return blocks


def _drop_byte_order_mark(blocks: Iterator[bytes], cursor: Cursor) -> Iterator[bytes]:
    if cursor.offset == 0 and (first := next(blocks, b"")):
        mark = codecs.BOM_UTF8 if first.startswith(codecs.BOM_UTF8) else b""
        cursor.offset = len(mark)
        yield first.removeprefix(mark)
    yield from blocks


def _split_at_separators(
    blocks: Iterable[bytes], separators: Separators, cursor: Cursor
) -> Iterator[tuple[bytes | Chunk, bytes, bool]]:
    """Yield slices of documents, each with the separator after it, or b"" if none follows, and whether the document ends there.

    Whole documents that are in memory together are yielded as one chunk.
    """
    rest, document_open, any_end = b"", cursor.in_document, cursor.record > 0
    for block in itertools.chain(blocks, [None]):
        rest, begin = rest + block if block and rest else block or rest, 0
        # The last bytes may be the beginning of a separator, or of a longer separator.
        certain = len(rest) if block is None else max(len(rest) - separators.longest + 1, 0)
        if document_open and (found := separators.find(rest, 0, certain)) is not None:
            position, mark = found
            yield rest[:position], mark, True
            begin, document_open, any_end = position + len(mark), False, True
        if not document_open:
            count, end = separators.whole_documents(rest, begin, certain)
            if count:
                yield cursor.documents(rest[begin:end], separators.separators, count=count), b"", True
                begin, any_end = end, True
        if block is not None and certain > begin:
            yield rest[begin:certain], b"", False
            begin, document_open = certain, True
        rest = rest[begin:]
    if rest or document_open or not any_end:  # After a separator at the end of a file, there is no further document.
        yield rest, b"", True


def _take_lines(cursor: Cursor, data: bytes) -> Iterator[Chunk]:
    """Yield whole lines as one chunk, or as several chunks if there are very many lines, since each takes memory of its own."""
    lines = io.BytesIO(data)
    while chunk := b"".join(itertools.islice(lines, MAX_LINES)):
        yield cursor.records(chunk, size=len(chunk), count=chunk.count(b"\n") + (not chunk.endswith(b"\n")))


def _reject_line(cursor: Cursor, size: int) -> Chunk:
    return cursor.reject("too long", f"more than {LONGEST_RECORD:,} bytes", size=size)

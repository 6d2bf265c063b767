"""Read files of any kind as one text, piece by piece, with an end-of-text marker between documents."""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.recognition.conversion import quote_path
from gpt_pretrain.system.recognition.encodings import ControlCount, is_blank
from gpt_pretrain.system.recognition.file_kinds import EMPTY, TEXT
from gpt_pretrain.system.terminal import escape_line
from gpt_pretrain.texts.chunks import (
    FIELD_MISSING,
    FILE_FAILURES,
    NOT_UTF8,
    TASK_ADVICE,
    TASK_ITEM,
    Chunk,
    Cursor,
    ReadPosition,
    RejectedRecord,
)
from gpt_pretrain.texts.containers.contents import Content, open_contents
from gpt_pretrain.texts.containers.decompression import DamagedArchiveError, NothingToReadError, PackedFileError
from gpt_pretrain.texts.finding import match_files
from gpt_pretrain.texts.inputs import CorpusInputs, FileStamp, InputFile, select_files, stamp_file, stat_input_file
from gpt_pretrain.texts.invalid_utf8 import encoding_advice, explain_invalid_utf8
from gpt_pretrain.texts.left_out import LeftOut
from gpt_pretrain.texts.missing_files import explain_no_files
from gpt_pretrain.texts.reading import read_records
from gpt_pretrain.texts.records.record_text import InvalidRecordError, chunk_records, record_text
from gpt_pretrain.tokenizers.base import END_OF_TEXT

PIECE_CHARS = 1 << 20
# Increase this when a change makes the same files yield other documents. Plain text in UTF-8 does not depend on it.
READING = 1

log = logging.getLogger(__name__)
_warned: set[tuple[Path, ...]] = set()  # files for which warnings about characters have been logged


@dataclass
class TextCounts:
    """The amounts that have been read of a text so far.

    Args:
        characters: Number of characters, including those of END_OF_TEXT between documents.
        separators: How often END_OF_TEXT stands between documents.
        markers: Number of end-of-text markers that are spelled out in the text.
        blanks: Number of documents that are left out because there is nothing but white space between two markers.
        without_text: Number of all documents that are left out because they are blank: between markers, as records and as
            files. A blank text before the first marker of a file, or after the last one, is not a document.
    """

    characters: int = 0
    separators: int = 0
    markers: int = 0
    blanks: int = 0
    without_text: int = 0

    @property
    def own_characters(self) -> int:
        """Number of characters of the documents themselves."""
        return self.characters - len(END_OF_TEXT) * self.separators


@dataclass(frozen=True)
class Text:
    """Files that are read as one text, piece by piece. Documents without text are left out.

    Args:
        files: The files in order.
        text_field: The field of a record, or the column of a table, that contains the text.
        as_text: Whether tables, JSON and HTML are read as plain text.
    """

    files: tuple[Path, ...]
    text_field: str = "text"
    as_text: bool = False

    def pieces(self, counts: TextCounts | None = None) -> Iterator[str]:
        """Yield the text in order, in pieces of at most PIECE_CHARS characters, with END_OF_TEXT between documents.

        Args:
            counts: Counts what is yielded.

        Raises:
            UserError: If a file or one of its records cannot be read.
        """
        counts, controls, any_before, document_open = counts or TextCounts(), ControlCount(), False, False
        # White space at the beginning of a document is stored on the disk until it is known whether text follows.
        with tempfile.SpooledTemporaryFile(PIECE_CHARS, "w+", encoding="utf-8", newline="") as blank:
            for text, ends in _split_at_markers(self._parts(), counts):
                if not document_open and is_blank(text):
                    blank.write(text)
                else:
                    if not document_open:
                        counts.separators += any_before
                        yield from _counted([END_OF_TEXT] * any_before, counts)
                        blank.seek(0)
                        yield from _counted(iter(lambda: blank.read(PIECE_CHARS), ""), counts)
                    any_before, document_open = True, not ends
                    controls.add(text.encode(errors="replace"))
                    yield from _counted((text[at : at + PIECE_CHARS] for at in range(0, len(text), PIECE_CHARS)), counts)
                if ends or document_open:
                    blank.seek(0)
                    blank.truncate()
        warnings = [] if self.files in _warned else controls.warnings()
        for warning in warnings:
            _warned.add(self.files)
            log.warning("%s", escape_line(f"{self.files[0]}{' and other files' * (len(self.files) > 1)}: {warning}"))

    def stamps(self) -> list[FileStamp]:
        """Return the stamps of the files, which show later whether the files have changed."""
        return [stamp_file(str(file)) for file in self.files]

    def sha256(self) -> str:
        """Return a hash of the files' sizes and bytes. For anything but plain text in UTF-8, the way of reading counts too."""
        digest = hashlib.sha256()
        for file in self.files:
            try:
                kind = stat_input_file(str(file), as_text=self.as_text).kind
                if kind.form == EMPTY:
                    continue
                if kind.form != TEXT or kind.encoding.name != "utf-8":
                    read_as = [READING, kind.form, kind.encoding.name, self.text_field, self.as_text]
                    # By the name of the file, the same compressed bytes may be a table or a text.
                    digest.update(json.dumps(read_as + [kind.content] * bool(kind.content)).encode())
                with open(file, "rb") as stream:
                    block, size = stream.read(1 << 20), file.stat().st_size
                    if len(block) == size and block.isspace():
                        continue
                    digest.update(size.to_bytes(8, "little"))
                    while block:
                        digest.update(block)
                        block = stream.read(1 << 20)
            except OSError as error:
                raise _unreadable(file, error) from error
        return digest.hexdigest()

    def _parts(self) -> Iterator[tuple[str, bool]]:
        """Yield the parts of all documents in order, each with whether its document ends there."""
        for path in self.files:
            try:
                file = stat_input_file(str(path), as_text=self.as_text)
                yield from self._parts_of(file)
            except NothingToReadError as error:
                problem = str(error).replace(" text_field=", " data.text_field=").rstrip(".")
                raise UserError(f"{path} is not read: {problem}. Choose another file.") from error
            except PackedFileError as error:
                raise UserError(f"{path} is not read: {error}.") from error
            except DamagedArchiveError as error:
                raise UserError(f"{path} cannot be read to its end: {error}. Get it again, or leave it out.") from error
            except OSError as error:
                raise _unreadable(path, error) from error

    def _parts_of(self, file: InputFile) -> Iterator[tuple[str, bool]]:
        inputs = CorpusInputs([file], None, self.text_field, None, [], [], self.as_text)
        left_out = LeftOut()
        with open(file.path, "rb") as stream:
            contents = open_contents(
                file.path, stream, size=file.size, left_out=left_out, as_text=self.as_text, text_field=self.text_field
            )
            for content in contents:
                if content.kind.form == TEXT:
                    yield from _decode(content)
                    continue
                cursor = Cursor(content.name, ReadPosition(), bytes_read=lambda: 0)
                try:
                    for chunk in read_records(content, file, cursor, inputs):
                        yield from self._records(chunk)
                except UserError as error:  # A column is missing. The setting in the message has another name here.
                    problems = [problem.replace(" text_field=", " data.text_field=") for problem in error.problems]
                    raise UserError(problems) from error
        left_out.report(file.path)

    def _records(self, chunk: Chunk) -> Iterator[tuple[str, bool]]:
        if isinstance(chunk.content, RejectedRecord):
            raise self._invalid(chunk.file, chunk.content.record, chunk.content.reason, chunk.content.detail)
        for number, record in chunk_records(chunk):
            try:
                text = record_text(record, self.text_field, is_json=isinstance(chunk.content, bytes))
                text.encode()
            except InvalidRecordError as error:
                raise self._invalid(chunk.file, number, error.reason_in(chunk, record), error.detail) from error
            except UnicodeEncodeError as error:
                detail = f"half a surrogate pair at character {error.start}"
                raise self._invalid(chunk.file, number, NOT_UTF8, detail) from error
            yield text, True

    def _invalid(self, file: str, number: int, reason: str, detail: str) -> UserError:
        if reason == TASK_ITEM:
            shown = quote_path(file) if Path(file).is_file() else "FILE"
            return UserError(f"{file}, record {number:,}: {reason} ({detail}). {TASK_ADVICE.format(shown)}")
        field = " Set data.text_field= to the field that contains the text." if reason == FIELD_MISSING else ""
        if reason == NOT_UTF8 and (advice := encoding_advice(file)):
            field = f" {advice}"
        of_file = reason in FILE_FAILURES
        what = "go on after files that cannot be read to their end" if of_file else "leave out records that cannot be used"
        setting = "max_failed_files=1" if of_file else "max_rejected=0.01"
        path, note = (quote_path(str(self.files[0])), "") if len(self.files) == 1 else ("PATH", " with all of the files as PATH")
        end = "." * (bool(field) and not field.endswith("."))
        return UserError(
            f"{file}, record {number:,}: {reason} ({detail}).{field}{end} To {what}, prepare a corpus{note}: "
            f"gpt-pretrain prepare {path} out=corpus {setting}"
        )


def find_text_files(pattern: str, *, text_field: str = "text", as_text: bool = False) -> tuple[Path, ...]:
    """Return the files that data.path names, sorted. Hidden files, and files that are not text, are left out of a folder.

    Raises:
        UserError: If there are none, or a file that is named itself cannot be read as text.
    """
    paths, is_named = match_files(pattern)
    if not paths:
        raise UserError(explain_no_files(pattern))
    files, problems = select_files(f"data.path={pattern}", paths, is_named=is_named, text_field=text_field, as_text=as_text)
    if problems:
        raise UserError([problem.replace(" text_field=", " data.text_field=") for problem in problems])
    return tuple(sorted(Path(file.path) for file in files))


def check_text_unchanged(stamps: Iterable[FileStamp]) -> None:
    """Check that no file has changed since its stamp was made, so that all passes over a text read the same bytes.

    Raises:
        UserError: If one has changed.
    """
    for before in stamps:
        if stamp_file(before.path) != before:
            raise UserError(f"{before.path} has changed while it was being read. Start again when it is complete.")


def sha256_without_blanks(text_sha256: str) -> str:
    """Return the hash of a text from which blank documents were left out. Versions until 0.1 kept such documents."""
    return hashlib.sha256(f"{text_sha256} without blank documents".encode()).hexdigest()


def _split_at_markers(parts: Iterable[tuple[str, bool]], counts: TextCounts) -> Iterator[tuple[str, bool]]:
    """Divide the parts of documents further at end-of-text markers. A marker may begin in one part and end in the next."""
    rest, is_blank_so_far, after_marker = "", True, False
    for text, ends in parts:
        *complete, rest = (rest + text).split(END_OF_TEXT)
        for document in complete:
            counts.markers += 1
            is_blank_so_far = is_blank_so_far and is_blank(document)
            counts.blanks += is_blank_so_far
            counts.without_text += is_blank_so_far and after_marker
            yield document, True
            is_blank_so_far, after_marker = True, True
        end = len(rest) if ends else max(len(rest) - len(END_OF_TEXT) + 1, 0)
        if ends or end:
            is_blank_so_far = is_blank_so_far and is_blank(rest[:end])
            yield rest[:end], ends
        rest = rest[end:]
        if ends:
            counts.blanks += is_blank_so_far and after_marker
            counts.without_text += is_blank_so_far and not after_marker
            is_blank_so_far, after_marker = True, False


def _counted(pieces: Iterable[str], counts: TextCounts) -> Iterator[str]:
    for piece in pieces:
        counts.characters += len(piece)
        yield piece


def _decode(content: Content) -> Iterator[tuple[str, bool]]:
    """Yield the parts of a text, with line feeds as line ends.

    Raises:
        UserError: If it is not UTF-8.
    """
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
    position = 0
    for block in content.blocks():
        try:
            yield decoder.decode(block), False
        except UnicodeDecodeError as error:
            where, advice = explain_invalid_utf8(block, error, position, content.name)
            raise UserError(f"{content.name} is not UTF-8 text ({where}). {advice}".rstrip()) from error
        position += len(block)
    try:
        yield decoder.decode(b"", final=True), True
    except UnicodeDecodeError as error:
        where, advice = explain_invalid_utf8(error.object, error, position - len(error.object), content.name)
        raise UserError(f"{content.name} is not UTF-8 text ({where}). {advice}") from error


def _unreadable(file: Path, error: OSError) -> UserError:
    return UserError(f"{file} cannot be read: {error.strerror or error}.")

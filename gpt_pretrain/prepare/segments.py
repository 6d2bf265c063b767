"""Encoded documents on disk, in segments. A journal lists a segment once it is safely stored.

A segment is a file of tokens and a file with a row for each document that ends in it. The journal has one line per segment, with
the position in the inputs after it. An interrupted preparation resumes there and discards everything after the last segment.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpt_pretrain.errors import UserError, describe_damage
from gpt_pretrain.prepare.encoded_batch import CONTINUES, MAX_LISTED, ROW, EncodedBatch
from gpt_pretrain.system.files import open_emptied, open_for_append, sync_file
from gpt_pretrain.system.json_files import parse_json
from gpt_pretrain.system.reading import DamagedFileError, open_regular, read_bytes
from gpt_pretrain.texts.chunks import ReadPosition, RejectedRecord

JOURNAL, REJECTED_FILE = "journal.jsonl", "rejected.jsonl"
# A segment ends after this many bytes of tokens or seconds. A killed process loses no more than that.
SEGMENT_BYTES = 1 << 26
SEGMENT_SECONDS = 10.0
HASH = re.compile("([0-9a-f]{32})?")
MAX_JOURNAL = 1 << 28  # Bytes. A segment takes 500, for at least ten seconds of work.


@dataclass
class RecordCounts:
    """Totals over all records read so far. The field names are keys of the journal.

    Args:
        records: Number of records, including rejected ones.
        empty: Number of records that contain only white space. They are not rejected.
        by_reason: Number of rejected records for each reason.
        text_bytes: Bytes of UTF-8 text that were encoded.
        tokens: Tokens that were encoded.
        markers: Number of documents that end at an end-of-text marker in the text.
        controls: Number of NUL and control characters in the text.
        nuls: Number of NUL characters in the text.
        marks: Number of byte order marks in the text, without those that begin a file.
        failed_files: Number of files that could not be read to their end.
        unknown: Number of tokens for text that the vocabulary lacks.
        unknown_example: A part of such text.
    """

    records: int = 0
    empty: int = 0
    by_reason: dict[str, int] = field(default_factory=dict)
    text_bytes: int = 0
    tokens: int = 0
    markers: int = 0
    controls: int = 0
    nuls: int = 0
    marks: int = 0
    failed_files: int = 0
    unknown: int = 0
    unknown_example: str = ""

    @property
    def rejected(self) -> int:
        return sum(self.by_reason.values())


@dataclass
class EncodingState:
    """Everything that is needed to resume after a segment. The field names are keys of the journal.

    Args:
        after: The position in the inputs after the segment.
        open_hash: Hash of an open document so far, 32 hexadecimal digits; empty if no document continues in the next segment.
        open_tokens: Tokens of the open document so far.
        open_bytes: Bytes of the open document so far.
        rejects_size: Size of the file of rejected records, in bytes.
        complete: Whether everything has been read.
    """

    after: ReadPosition = field(default_factory=ReadPosition)
    counts: RecordCounts = field(default_factory=RecordCounts)
    open_hash: str = ""
    open_tokens: int = 0
    open_bytes: int = 0
    rejects_size: int = 0
    complete: bool = False


@dataclass(frozen=True)
class Segment:
    """Two complete files: the tokens, and the rows of documents. The field names are keys of the journal.

    Args:
        path: The file of tokens.
        tokens: Number of tokens.
        rows: Number of rows.
    """

    path: Path
    tokens: int
    rows: int
    tokens_sha256: str
    rows_sha256: str

    @property
    def rows_path(self) -> Path:
        return self.path.with_suffix(".rows")

    def is_intact(self) -> bool:
        """Return whether both files have the hashes that the journal lists."""
        try:
            return sha256(self.path) == self.tokens_sha256 and sha256(self.rows_path) == self.rows_sha256
        except OSError:
            return False


class SegmentWriter:
    """Append encoded batches to the segments in a folder, after the ones in the journal.

    Raises:
        UserError: If a segment in the journal is damaged.
    """

    def __init__(self, folder: Path, *, itemsize: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._itemsize = folder, itemsize
        self.segments, self.state, journal_size = read_journal(folder)
        if journal_size is not None:
            with open_for_append(folder / JOURNAL) as journal:
                journal.truncate(journal_size)
        damaged = [str(segment.path) for segment in self.segments if not segment.is_intact()]
        if damaged:
            raise UserError(
                f"{damaged[0]} is damaged: its content has changed since it was written. Delete {folder.parent} to start over."
            )
        self._rejected = open_for_append(folder / REJECTED_FILE)
        if self.state.rejects_size > (size := self._rejected.tell()):  # Truncating it to a larger size would extend it.
            raise _damaged(folder, ValueError(f"{REJECTED_FILE} has {size:,} bytes, fewer than it says"))
        self._rejected.truncate(self.state.rejects_size)
        self._open_segment()

    def add(self, batch: EncodedBatch, end: ReadPosition) -> None:
        """Append a batch.

        Args:
            end: The position in the inputs after the batch.
        """
        self._tokens.write(batch.tokens.data)
        self._tokens_hash.update(batch.tokens.data)
        self._n_tokens += len(batch.tokens)
        self._rows.append(self._join_parts(batch.rows))
        counts = self.state.counts
        counts.records += batch.records
        counts.empty += batch.empty
        counts.markers += batch.markers
        counts.controls += batch.controls
        counts.nuls += batch.nuls
        counts.marks += batch.marks
        counts.unknown += batch.unknown
        counts.unknown_example = counts.unknown_example or batch.unknown_example
        counts.tokens += len(batch.tokens)
        counts.text_bytes += int(batch.rows["bytes"].sum())
        self._list_rejected(batch.rejected)
        counts.by_reason = dict(Counter(counts.by_reason) + batch.by_reason)
        self.state.after = end
        if self._n_tokens * self._itemsize >= SEGMENT_BYTES or time.monotonic() - self._opened > SEGMENT_SECONDS:
            self.finish_segment()

    def finish_segment(self, *, complete: bool = False) -> None:
        """Flush the current segment to disk and add it to the journal.

        Args:
            complete: Record that everything has been read, so that no segment follows.
        """
        rows = np.concatenate([*self._rows, np.empty(0, ROW)]).tobytes()
        rows_hash = hashlib.sha256(rows).hexdigest()
        segment = Segment(self._path, self._n_tokens, len(rows) // ROW.itemsize, self._tokens_hash.hexdigest(), rows_hash)
        with open_emptied(segment.rows_path) as stream:
            stream.write(rows)
            sync_file(stream)
        sync_file(self._tokens)
        self._tokens.close()
        sync_file(self._rejected)
        self.state.rejects_size = self._rejected.tell()
        self.state.complete = complete
        state = dataclasses.asdict(self.state)
        if not state["after"]["blank"]:
            del state["after"]["blank"]  # Earlier versions do not know this field.
        entry = {"piece": dataclasses.asdict(segment) | {"path": segment.path.name}, "state": state}
        with open_for_append(self.folder / JOURNAL) as journal:
            journal.write(json.dumps(entry).encode() + b"\n")
            sync_file(journal)
        self.segments.append(segment)
        if not complete:
            self._open_segment()

    def close(self) -> None:
        """Close the files without finishing the current segment."""
        self._tokens.close()
        self._rejected.close()

    def _list_rejected(self, records: Iterable[RejectedRecord]) -> None:
        """List the files that fail, and the first of the records that are left out."""
        listed = self.state.counts.rejected
        for record in records:
            self.state.counts.failed_files += record.fails_file
            listed += not record.fails_file
            if record.fails_file or listed <= MAX_LISTED:
                fields = {name: value for name, value in dataclasses.asdict(record).items() if value}
                # Half a surrogate pair, for example in a key of a record, becomes an escape of JSON.
                self._rejected.write(json.dumps(fields, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")

    def _open_segment(self) -> None:
        self._path = self.folder / segment_name(len(self.segments))
        self._tokens = open_emptied(self._path)
        self._tokens_hash = hashlib.sha256()
        self._n_tokens, self._rows = 0, list[np.ndarray]()
        self._opened = time.monotonic()

    def _join_parts(self, rows: np.ndarray) -> np.ndarray:
        """Replace the rows of a document's parts by one row, including parts from earlier batches."""
        state = self.state
        if not state.open_hash and not (rows["state"] == CONTINUES).any():
            return rows
        documents = []
        for part_hash, tokens, size, row_state in rows.tolist():
            before, state.open_hash = bytes.fromhex(state.open_hash), ""
            tokens, size = tokens + state.open_tokens, size + state.open_bytes
            state.open_tokens = state.open_bytes = 0
            document_hash = hashlib.blake2b(before + part_hash, digest_size=16).digest() if before else part_hash
            if row_state == CONTINUES:
                state.open_hash, state.open_tokens, state.open_bytes = document_hash.hex(), tokens, size
            else:
                documents.append((document_hash, tokens, size, row_state))
        return np.array(documents, ROW)


def read_journal(folder: Path) -> tuple[list[Segment], EncodingState, int | None]:
    """Read the journal of a folder, without an incomplete last line.

    Returns:
        The segments, the state after the last one, and the size of the complete lines in bytes; None if there is no journal.

    Raises:
        UserError: If the journal is damaged.
    """
    segments, state, size = list[Segment](), EncodingState(), 0
    try:
        lines = read_bytes(folder / JOURNAL, max_bytes=MAX_JOURNAL).splitlines(keepends=True)
    except FileNotFoundError:
        return segments, state, None
    except DamagedFileError as error:
        raise _damaged(folder, error) from error
    for line in lines:
        if not line.endswith(b"\n"):
            break
        segment, state = _parse_entry(line, folder)
        if segment.path.name != (name := segment_name(len(segments))):  # so that no file is read many times
            raise _damaged(folder, ValueError(f"it names {segment.path.name!r} in place of {name}"))
        segments.append(segment)
        size += len(line)
    return segments, state, size


def segment_name(number: int) -> str:
    """Return the name of the file of tokens of a segment, counted from 0."""
    return f"{number:05d}.bin"


def total_counts(folders: Iterable[Path]) -> RecordCounts:
    """Add up the counts of several folders."""
    total = RecordCounts()
    for folder in folders:
        counts = read_journal(folder)[1].counts
        amounts = ("records", "empty", "text_bytes", "tokens", "markers", "controls", "nuls", "marks", "failed_files", "unknown")
        for name in amounts:
            setattr(total, name, getattr(total, name) + getattr(counts, name))
        total.unknown_example = total.unknown_example or counts.unknown_example
        total.by_reason = dict(Counter(total.by_reason) + Counter(counts.by_reason))
    return total


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _damaged(folder: Path, error: Exception) -> UserError:
    return UserError(f"{folder / JOURNAL} is damaged: {describe_damage(error)}. Delete {folder.parent} to start over.")


def _parse_entry(line: bytes, folder: Path) -> tuple[Segment, EncodingState]:
    """Return the segment in a line of the journal, and the state after it.

    Raises:
        UserError: If the line is damaged.
    """
    try:
        entry = parse_json(line)
        # Only the last part of the name counts, so that a journal cannot point outside its own folder.
        segment = Segment(**entry["piece"] | {"path": folder / Path(entry["piece"]["path"]).name})
        state = _parse_state(entry["state"])
        counts = [segment.tokens, segment.rows, state.open_tokens, state.open_bytes, state.rejects_size]
        counts += [*vars(state.after).values(), *state.counts.by_reason.values()]
        counts += [value for name, value in vars(state.counts).items() if name not in ("by_reason", "unknown_example")]
        if not all(isinstance(count, int) and 0 <= count < 1 << 62 for count in counts):
            raise ValueError("a count is not a whole number")
        if not isinstance(state.counts.unknown_example, str):
            raise ValueError("an example is not a text")
        if not isinstance(state.open_hash, str) or HASH.fullmatch(state.open_hash) is None or type(state.complete) is not bool:
            raise ValueError("the state after a segment is invalid")
        if state.counts.rejected > state.counts.records or bool(state.counts.by_reason) > bool(state.rejects_size):
            raise ValueError("it counts more rejected records than there are")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, error) from error
    return segment, state


def _parse_state(fields: dict[str, Any]) -> EncodingState:
    return EncodingState(**fields | {"after": ReadPosition(**fields["after"]), "counts": RecordCounts(**fields["counts"])})

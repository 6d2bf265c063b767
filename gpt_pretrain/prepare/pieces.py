"""What has been encoded so far, in pieces that are noted in a journal once they are safely on disk.

A piece is a file of tokens and a file of rows, one for each document that ends in it. The journal has a line for each piece, with
the place in the corpus behind it: after an interruption, reading goes on there, and what stands behind the last piece is thrown
away.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare.encoding import chained
from gpt_pretrain.prepare.items import OPEN, ROW, Encoded, ReadPosition
from gpt_pretrain.system.files import sync_file

JOURNAL, REJECTS = "journal.jsonl", "rejected.jsonl"
PIECE_BYTES = 1 << 26  # of tokens; with PIECE_SECONDS: what a killed process loses at most
PIECE_SECONDS = 10.0


@dataclass
class Counts:
    """What has been seen so far.

    Args:
        records: good and bad.
        empty: nothing but white space; neither good nor bad.
        by_reason: the bad ones.
        text_bytes: of UTF-8, in good documents and bad ones that had been begun.
        tokens: likewise.
    """

    records: int = 0
    empty: int = 0
    by_reason: dict[str, int] = field(default_factory=dict)
    text_bytes: int = 0
    tokens: int = 0

    @property
    def rejected(self) -> int:
        return sum(self.by_reason.values())


@dataclass
class State:
    """Where the work is: everything that is needed to go on.

    Args:
        after: in the corpus.
        open_hash: of the document that has been begun, 32 hexadecimal digits; empty if none has.
        open_tokens: of that document.
        open_bytes: of that document.
        rejects_size: of the file of rejected records, in bytes.
        complete: whether nothing is left to be read.
    """

    after: ReadPosition = field(default_factory=ReadPosition)
    counts: Counts = field(default_factory=Counts)
    open_hash: str = ""
    open_tokens: int = 0
    open_bytes: int = 0
    rejects_size: int = 0
    complete: bool = False


@dataclass(frozen=True)
class Piece:
    """Two files that are whole.

    Args:
        tokens: how many.
        rows: how many.
    """

    path: Path
    tokens: int
    rows: int
    tokens_sha256: str
    rows_sha256: str

    @property
    def rows_path(self) -> Path:
        return self.path.with_suffix(".rows")

    def is_whole(self) -> bool:
        """Whether both files are what they were."""
        try:
            return sha256(self.path) == self.tokens_sha256 and sha256(self.rows_path) == self.rows_sha256
        except OSError:
            return False


class Pieces:
    """The pieces in a folder, and the one that is being written.

    Raises:
        UserError: when a piece that the journal has is damaged.
    """

    def __init__(self, folder: Path, *, itemsize: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._itemsize = folder, itemsize
        self.pieces, self.state, end = read_journal(folder)
        if end is not None:
            os.truncate(folder / JOURNAL, end)
        damaged = [str(piece.path) for piece in self.pieces if not piece.is_whole()]
        if damaged:
            raise UserError(f"{damaged[0]} is damaged: it is not what was written. Remove {folder.parent} and begin again.")
        self._rejects: BinaryIO = open(folder / REJECTS, "ab")  # noqa: SIM115
        self._rejects.truncate(self.state.rejects_size)
        self._begin()

    def add(self, encoded: Encoded, after: ReadPosition) -> None:
        """Write what a worker made, and where in the corpus reading goes on behind it."""
        self._tokens.write(encoded.tokens)
        self._tokens_hash.update(encoded.tokens)
        self._count += len(encoded.tokens) // self._itemsize
        rows = self._joined(encoded.rows)
        self._rows.append(rows)
        counts = self.state.counts
        counts.records += encoded.records
        counts.empty += encoded.empty
        counts.tokens += len(encoded.tokens) // self._itemsize
        counts.text_bytes += int(encoded.rows["bytes"].sum())
        counts.by_reason = dict(Counter(counts.by_reason) + Counter(bad.reason for bad in encoded.bad))
        for bad in encoded.bad:
            told = {name: value for name, value in dataclasses.asdict(bad).items() if value}
            self._rejects.write(json.dumps(told, ensure_ascii=False).encode() + b"\n")
        self.state.after = after
        if self._count * self._itemsize >= PIECE_BYTES or time.monotonic() - self._since > PIECE_SECONDS:
            self.close_piece()

    def close_piece(self, *, complete: bool = False) -> None:
        """Make the current piece safe and note it; with `complete`, that nothing follows."""
        rows = np.concatenate([*self._rows, np.empty(0, ROW)]).tobytes()
        piece = Piece(
            self._path, self._count, len(rows) // ROW.itemsize, self._tokens_hash.hexdigest(), hashlib.sha256(rows).hexdigest()
        )
        with open(piece.rows_path, "wb") as stream:
            stream.write(rows)
            sync_file(stream)
        sync_file(self._tokens)
        self._tokens.close()
        sync_file(self._rejects)
        self.state.rejects_size = self._rejects.tell()
        self.state.complete = complete
        entry = {"piece": dataclasses.asdict(piece) | {"path": piece.path.name}, "state": dataclasses.asdict(self.state)}
        with open(self.folder / JOURNAL, "a", encoding="utf-8") as journal:
            journal.write(json.dumps(entry) + "\n")
            sync_file(journal)
        self.pieces.append(piece)
        if not complete:
            self._begin()

    def close(self) -> None:
        """Leave the files as they are."""
        self._tokens.close()
        self._rejects.close()

    def _begin(self) -> None:
        self._path = self.folder / f"{len(self.pieces):05d}.bin"
        self._tokens = open(self._path, "wb")  # noqa: SIM115
        self._tokens_hash = hashlib.sha256()
        self._count, self._rows = 0, list[np.ndarray]()
        self._since = time.monotonic()

    def _joined(self, rows: np.ndarray) -> np.ndarray:
        """Rows of which each is a document: parts of one are put together, also with those that came before."""
        state = self.state
        if not state.open_hash and not (rows["state"] == OPEN).any():
            return rows
        whole = []
        for part_hash, tokens, size, kind in rows.tolist():
            before, state.open_hash = bytes.fromhex(state.open_hash), ""
            tokens, size = tokens + state.open_tokens, size + state.open_bytes
            state.open_tokens = state.open_bytes = 0
            joined = chained(before, part_hash) if before else part_hash
            if kind == OPEN:
                state.open_hash, state.open_tokens, state.open_bytes = joined.hex(), tokens, size
            else:
                whole.append((joined, tokens, size, kind))
        return np.array(whole, ROW)


def read_journal(folder: Path) -> tuple[list[Piece], State, int | None]:
    """The pieces that are safely in a folder, where the work stood behind the last, and the length of the journal's whole lines.

    A line that was not finished counts for nothing; without a journal there is no length.
    """
    pieces, state, end = list[Piece](), State(), 0
    try:
        lines = (folder / JOURNAL).read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return pieces, state, None
    for line in lines:
        if not line.endswith(b"\n"):
            break
        entry = json.loads(line)
        pieces.append(Piece(**entry["piece"] | {"path": folder / entry["piece"]["path"]}))
        state = _state(entry["state"])
        end += len(line)
    return pieces, state, end


def total_counts(folders: Iterable[Path]) -> Counts:
    """What was counted in several folders together."""
    total = Counts()
    for folder in folders:
        counts = read_journal(folder)[1].counts
        for name in ("records", "empty", "text_bytes", "tokens"):
            setattr(total, name, getattr(total, name) + getattr(counts, name))
        total.by_reason = dict(Counter(total.by_reason) + Counter(counts.by_reason))
    return total


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _state(fields: dict[str, Any]) -> State:
    return State(**fields | {"after": ReadPosition(**fields["after"]), "counts": Counts(**fields["counts"])})

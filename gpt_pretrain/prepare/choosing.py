"""Which documents go where: duplicates nowhere, the others to the training or the validation part, by the hash of their text.

A document is for validation if its hash, as a number between 0 and 1, is below a threshold. For `val_fraction` the threshold is
that fraction, so the same text is always on the same side, whatever stands before or behind it (but for a corpus so small that
none would be below it: then the smallest one is). For `val_tokens` it is chosen so that the documents with the smallest hashes
have together at least that many tokens.
"""

from __future__ import annotations

import itertools
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare.items import WHOLE
from gpt_pretrain.prepare.stage import Stage

NOWHERE, TRAIN, VAL = 0, 1, 2
BUCKET_BYTES = 1 << 26  # of hashes that are sorted in memory at once
PLACED = np.dtype([("high", ">u8"), ("low", ">u8"), ("number", "<u8")])  # 24 bytes a document, while duplicates are looked for
BINS = 1 << 16


@dataclass(frozen=True)
class DocumentSplit:
    """Where each document goes.

    Args:
        threshold: documents with hashes up to this one are for validation, 32 hexadecimal digits; empty: none.
        duplicates: a file with a bit for each document, set for those that are left out; None: all stay.
    """

    threshold: str
    duplicates: Path | None = None

    def parts(self, first: int, rows: np.ndarray) -> np.ndarray:
        """NOWHERE, TRAIN or VAL for each of some rows, of which the first has that number."""
        found = np.where(rows["state"] == WHOLE, np.uint8(TRAIN), np.uint8(NOWHERE))
        if self.threshold:
            found[(found == TRAIN) & _up_to(rows, bytes.fromhex(self.threshold))] = VAL
        if self.duplicates is not None:
            found[_bits(self.duplicates, first, len(rows))] = NOWHERE
        return found


def choose(stage: Stage, *, val_fraction: float, val_tokens: int | None, duplicates: Path | None) -> DocumentSplit:
    """The threshold that the settings ask for; with val_fraction at least one of several documents is for validation.

    Args:
        duplicates: as `Choice` has it.

    Raises:
        UserError: when no document is left for training.
    """
    everything = DocumentSplit("", duplicates)
    lowest, highest = _extremes(stage, everything)
    if lowest == highest or (val_tokens is None and val_fraction == 0):  # one text is for training
        return everything
    if val_tokens is None:
        threshold = max(f"{max(int(val_fraction * 2**128) - 1, 0):032x}", lowest)
    else:
        threshold = _threshold(stage, everything, val_tokens)
    if threshold >= highest:
        setting = f"val_fraction={val_fraction:g}" if val_tokens is None else f"val_tokens={val_tokens}"
        raise UserError(f"{setting}: this takes every document for validation, and leaves none for training. Choose less.")
    return DocumentSplit(threshold, duplicates)


def find_duplicates(stage: Stage, folder: Path) -> tuple[Path, int]:
    """A file with a bit for each document whose text came before, and how many these are.

    The hashes are sorted in buckets on disk, 24 bytes a document; in memory there are one bucket and a bit for each document.
    Among 10^9 texts two different ones have the same hash of 128 bits with a probability of 10^-21.
    """
    n_buckets = stage.n_rows * PLACED.itemsize // BUCKET_BYTES + 1
    names = [folder / f"hashes-{number:05d}" for number in range(n_buckets)]
    with ExitStack() as opened:
        files = [opened.enter_context(open(name, "wb")) for name in names]
        for first, rows in stage.rows():
            placed = np.empty(len(rows), PLACED)
            placed["high"], placed["low"] = _high_and_low(rows)
            placed["number"] = np.arange(first, first + len(rows))
            bucket = (placed["high"].astype(np.uint64) >> np.uint64(32)) * np.uint64(n_buckets) >> np.uint64(32)
            bucket[rows["state"] != WHOLE] = n_buckets
            for number, file in enumerate(files):
                file.write(placed[bucket == number].tobytes())
    bits, count = np.zeros(stage.n_rows // 8 + 1, np.uint8), 0
    for name in names:
        found = _repeated(np.fromfile(name, PLACED))
        np.bitwise_or.at(bits, found >> 3, np.uint8(1) << (found & 7).astype(np.uint8))
        count += len(found)
        name.unlink()
    target = folder / "duplicates"
    target.write_bytes(bits.tobytes())
    return target, count


def _repeated(placed: np.ndarray) -> np.ndarray:
    """The numbers of documents with the hash of one that has a smaller number: int64."""
    high, low, number = (placed[name].astype(np.uint64) for name in ("high", "low", "number"))
    order = np.lexsort((number, low, high))
    high, low, number = high[order], low[order], number[order]
    same = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
    repeated: np.ndarray = number[1:][same].astype(np.int64)
    return repeated


def _extremes(stage: Stage, choice: DocumentSplit) -> tuple[str, str]:
    """The smallest and the largest hash of the documents that are not left out.

    Raises:
        UserError: when all are.
    """
    found: list[str] = []
    for first, rows in stage.rows():
        kept = rows[choice.parts(first, rows) != NOWHERE]
        if len(kept):
            high, low = _high_and_low(kept)
            order = np.lexsort((low, high))
            found = sorted([*found, kept["hash"][order[0]].tobytes().hex(), kept["hash"][order[-1]].tobytes().hex()])
            found = [found[0], found[-1]]
    if not found:
        raise UserError("The corpus is empty: there is no document in what was read.")
    return found[0], found[1]


def _threshold(stage: Stage, choice: DocumentSplit, wanted: int) -> str:
    """The smallest hash up to which the documents have together at least that many tokens, or that of all if they have fewer."""
    tokens = np.zeros(BINS)
    for first, rows in stage.rows():
        kept = rows[choice.parts(first, rows) != NOWHERE]
        tokens += np.bincount(_bin(kept), weights=kept["tokens"], minlength=BINS)
    sums = tokens.cumsum()
    if sums[-1] <= wanted:
        return "f" * 32
    crossed = int(np.searchsorted(sums, wanted))
    candidates: Counter[str] = Counter()
    for first, rows in stage.rows():
        kept = rows[choice.parts(first, rows) != NOWHERE]
        for row in kept[_bin(kept) == crossed]:
            candidates[row["hash"].tobytes().hex()] += int(row["tokens"])
    ordered = sorted(candidates)
    reached = itertools.accumulate((candidates[text] for text in ordered), initial=int(sums[crossed] - tokens[crossed]))
    return next(text for text, total in zip(ordered, itertools.islice(reached, 1, None), strict=True) if total >= wanted)


def _bin(rows: np.ndarray) -> np.ndarray:
    return (_high_and_low(rows)[0] >> np.uint64(48)).astype(np.int64)


def _up_to(rows: np.ndarray, limit: bytes) -> np.ndarray:
    """Whether the hash of each row is at most that."""
    high, low = _high_and_low(rows)
    limit_high, limit_low = int.from_bytes(limit[:8], "big"), int.from_bytes(limit[8:], "big")
    return np.asarray((high < limit_high) | ((high == limit_high) & (low <= limit_low)))


def _high_and_low(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two halves of each row's hash, uint64."""
    halves = np.ascontiguousarray(rows["hash"]).view(">u8").reshape(-1, 2).astype(np.uint64)
    return halves[:, 0], halves[:, 1]


def _bits(path: Path, first: int, count: int) -> np.ndarray:
    """Some bits of a file, as booleans."""
    with open(path, "rb") as stream:
        stream.seek(first // 8)
        data = np.frombuffer(stream.read((first % 8 + count + 7) // 8), np.uint8)
    return np.unpackbits(data, bitorder="little")[first % 8 : first % 8 + count].astype(bool)

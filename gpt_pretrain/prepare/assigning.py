"""Assign each document to the training or the validation set by the hash of its text, and leave out duplicates.

A document belongs to the validation set if its hash, as a number between 0 and 1, lies below a threshold. With `val_fraction` the
threshold is this fraction, so that a text is in the same set in every corpus. (A small corpus may have no document below it. Then
the document with the smallest hash is taken.) With `val_tokens` the threshold is the lowest one that gives the validation set at
least this many tokens.
"""

from __future__ import annotations

import itertools
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare.encoded_batch import COMPLETE
from gpt_pretrain.prepare.encoded_corpus import EncodedCorpus
from gpt_pretrain.system.files import open_emptied

LEFT_OUT, TRAIN, VAL = 0, 1, 2
BUCKET_BYTES = 1 << 26  # Bytes of hashes that are sorted in memory at a time.
HASH_ENTRY = np.dtype([("high", ">u8"), ("low", ">u8"), ("number", "<u8")])  # 24 bytes per document, to find duplicates.
N_BINS = 1 << 16


@dataclass(frozen=True)
class DocumentSplit:
    """Assign each document to a set.

    Args:
        threshold: Largest hash of the validation set, 32 hexadecimal digits; empty if there is no validation set.
        duplicates: A file with one bit per document, set for duplicates; None if duplicates are kept.
    """

    threshold: str
    duplicates: Path | None = None

    def assign(self, first: int, rows: np.ndarray) -> np.ndarray:
        """Return LEFT_OUT, TRAIN or VAL for each of some consecutive rows, shape (len(rows),).

        Args:
            first: Index of the first row.
        """
        assigned = np.where(rows["state"] == COMPLETE, np.uint8(TRAIN), np.uint8(LEFT_OUT))
        if self.threshold:
            assigned[(assigned == TRAIN) & _is_at_most(rows, bytes.fromhex(self.threshold))] = VAL
        if self.duplicates is not None:
            assigned[_read_bits(self.duplicates, first, len(rows))] = LEFT_OUT
        return assigned


def choose_split(corpus: EncodedCorpus, *, val_fraction: float, val_tokens: int | None, duplicates: Path | None) -> DocumentSplit:
    """Choose the threshold by the settings. A positive val_fraction takes at least one of several documents.

    Args:
        duplicates: See DocumentSplit.

    Raises:
        UserError: If no document is left for training.
    """
    everything = DocumentSplit("", duplicates)
    lowest, highest = _hash_range(corpus, everything)
    if lowest == highest or (val_tokens is None and val_fraction == 0):  # A single text is used for training.
        return everything
    if val_tokens is None:
        threshold = max(f"{max(int(val_fraction * 2**128) - 1, 0):032x}", lowest)
    else:
        threshold = _threshold_for_tokens(corpus, everything, val_tokens)
    if threshold >= highest:
        setting = f"val_fraction={val_fraction:g}" if val_tokens is None else f"val_tokens={val_tokens}"
        raise UserError(
            f"{setting} puts every document into the validation set and leaves none for training. Choose a smaller number."
        )
    return DocumentSplit(threshold, duplicates)


def find_duplicates(corpus: EncodedCorpus, folder: Path) -> tuple[Path, int]:
    """Find documents with the same text as an earlier one, and write a file with one bit per document.

    The hashes are sorted in buckets on disk, 24 bytes per document. Memory holds one bucket and one bit per document. The
    probability that two different texts among 10^9 have the same 128-bit hash is 10^-21.

    Returns:
        The file and the number of duplicates.
    """
    n_buckets = corpus.n_rows * HASH_ENTRY.itemsize // BUCKET_BYTES + 1
    buckets = [folder / f"hashes-{number:05d}" for number in range(n_buckets)]
    _distribute_hashes(corpus, buckets)
    bits, count = np.zeros(corpus.n_rows // 8 + 1, np.uint8), 0
    for bucket in buckets:
        repeated = _repeated(np.fromfile(bucket, HASH_ENTRY))
        np.bitwise_or.at(bits, repeated >> 3, np.uint8(1) << (repeated & 7).astype(np.uint8))
        count += len(repeated)
        bucket.unlink()
    target = folder / "duplicates"
    with open_emptied(target) as stream:
        stream.write(bits.tobytes())
    return target, count


def _distribute_hashes(corpus: EncodedCorpus, buckets: list[Path]) -> None:
    """Write each document's hash and number to the bucket for its range of hashes."""
    n_buckets = len(buckets)
    with ExitStack() as stack:
        files = [stack.enter_context(open_emptied(bucket)) for bucket in buckets]
        for first, rows in corpus.rows():
            entries = np.empty(len(rows), HASH_ENTRY)
            entries["high"], entries["low"] = _hash_halves(rows)
            entries["number"] = np.arange(first, first + len(rows))
            bucket = (entries["high"].astype(np.uint64) >> np.uint64(32)) * np.uint64(n_buckets) >> np.uint64(32)
            bucket[rows["state"] != COMPLETE] = n_buckets
            for number, file in enumerate(files):
                file.write(entries[bucket == number].tobytes())


def _repeated(entries: np.ndarray) -> np.ndarray:
    """Return the numbers of the documents with the same hash as an earlier document, int64."""
    high, low, number = (entries[name].astype(np.uint64) for name in ("high", "low", "number"))
    order = np.lexsort((number, low, high))
    high, low, number = high[order], low[order], number[order]
    same = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
    repeated: np.ndarray = number[1:][same].astype(np.int64)
    return repeated


def _hash_range(corpus: EncodedCorpus, split: DocumentSplit) -> tuple[str, str]:
    """Return the smallest and the largest hash of the kept documents.

    Raises:
        UserError: If no document is kept.
    """
    extremes: list[str] = []
    for first, rows in corpus.rows():
        kept = rows[split.assign(first, rows) != LEFT_OUT]
        if len(kept):
            high, low = _hash_halves(kept)
            order = np.lexsort((low, high))
            extremes = sorted([*extremes, *(kept["hash"][order[index]].tobytes().hex() for index in (0, -1))])
            extremes = [extremes[0], extremes[-1]]
    if not extremes:
        raise UserError("The inputs contain no text, so the corpus would be empty. Give files that contain text.")
    return extremes[0], extremes[1]


def _threshold_for_tokens(corpus: EncodedCorpus, split: DocumentSplit, n_tokens: int) -> str:
    """Return the lowest threshold that gives at least n_tokens tokens, or the largest possible hash if there are fewer."""
    tokens = np.zeros(N_BINS)
    for first, rows in corpus.rows():
        kept = rows[split.assign(first, rows) != LEFT_OUT]
        tokens += np.bincount(_bin(kept), weights=kept["tokens"], minlength=N_BINS)
    sums = tokens.cumsum()
    if sums[-1] <= n_tokens:
        return "f" * 32
    # The threshold lies in the bin where the sum reaches n_tokens. Only its documents are sorted.
    crossed = int(np.searchsorted(sums, n_tokens))
    candidates: Counter[str] = Counter()
    for first, rows in corpus.rows():
        kept = rows[split.assign(first, rows) != LEFT_OUT]
        for row in kept[_bin(kept) == crossed]:
            candidates[row["hash"].tobytes().hex()] += int(row["tokens"])
    ordered = sorted(candidates)
    totals = itertools.accumulate((candidates[value] for value in ordered), initial=int(sums[crossed] - tokens[crossed]))
    return next(value for value, total in zip(ordered, itertools.islice(totals, 1, None), strict=True) if total >= n_tokens)


def _bin(rows: np.ndarray) -> np.ndarray:
    return (_hash_halves(rows)[0] >> np.uint64(48)).astype(np.int64)


def _is_at_most(rows: np.ndarray, limit: bytes) -> np.ndarray:
    """Return which rows have a hash up to the limit, boolean."""
    high, low = _hash_halves(rows)
    limit_high, limit_low = int.from_bytes(limit[:8], "big"), int.from_bytes(limit[8:], "big")
    return np.asarray((high < limit_high) | ((high == limit_high) & (low <= limit_low)))


def _hash_halves(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the upper and the lower 64 bits of each row's hash, uint64."""
    halves = np.ascontiguousarray(rows["hash"]).view(">u8").reshape(-1, 2).astype(np.uint64)
    return halves[:, 0], halves[:, 1]


def _read_bits(path: Path, first: int, count: int) -> np.ndarray:
    """Return consecutive bits of a file, boolean, shape (count,)."""
    with open(path, "rb") as stream:
        stream.seek(first // 8)
        data = np.frombuffer(stream.read((first % 8 + count + 7) // 8), np.uint8)
    return np.unpackbits(data, bitorder="little")[first % 8 : first % 8 + count].astype(bool)

"""Print the content of a corpus: a summary after its preparation, and a report computed from its files alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gpt_pretrain.data.files import LocalFiles
from gpt_pretrain.data.shards.manifest import open_prepared
from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare.encoding import describe_listed, first_rejected
from gpt_pretrain.prepare.segments import REJECTED_FILE, RecordCounts
from gpt_pretrain.system.formatting import format_count, format_si
from gpt_pretrain.system.recognition.encodings import ControlCount
from gpt_pretrain.system.terminal import escape_line, print_escaped
from gpt_pretrain.tokenizers.base import END_OF_TEXT, Tokenizer, decode
from gpt_pretrain.tokenizers.unknown import MANY_UNKNOWN, describe_unknown

FAILED = "failed_files"  # The key of the manifest.
N_EXCERPTS = 3
EXCERPT_TOKENS = 60
BAR_WIDTH = 40  # Characters of the longest bar.
STARTS_AT_A_TIME = 1 << 20  # 8 MB.


def print_summary(manifest: dict[str, Any], counts: RecordCounts, folder: Path) -> None:
    """Print the sizes of the training and the validation set, and the numbers of records that were left out."""
    if manifest.get(FAILED):
        files = format_count(len(manifest[FAILED]), "file")
        print(f"INCOMPLETE: {files} could not be read to the end. What is missing is listed below.")
    for name, part in manifest["parts"].items():
        size = f"{format_si(part['bytes'], 'B')} of text in {format_count(len(part['shards']), 'shard')}"
        amounts = f"{format_count(part['documents'], 'document')}, {format_count(part['tokens'], 'token')}"
        print_escaped(f"{name:5}  {amounts}, {size}")
    if not manifest["parts"]["val"]["tokens"]:
        print(
            "There is no validation set: it needs two documents with different texts, and val_fraction above 0. "
            "document_separator= splits a text file into documents."
        )
    elif manifest["parts"]["val"]["bytes"] > manifest["parts"]["train"]["bytes"]:
        print(
            "Warning: The validation set has more text than the training set. Whole documents are assigned to it, by the hash of "
            "their text. document_separator= splits a text file into documents; another val_fraction may choose others."
        )
    if counts.markers:
        print(f"{format_count(counts.markers, 'document')} ended at {END_OF_TEXT} in the text.")
    for warning in ControlCount(counts.text_bytes, counts.controls, counts.nuls, counts.marks).warnings():
        print(f"Warning: {warning}")
    if counts.unknown:
        warning = "Warning: " * (counts.unknown > MANY_UNKNOWN * counts.tokens)
        print_escaped(f"{warning}{describe_unknown(counts.unknown, counts.tokens, counts.unknown_example)}")
    if counts.empty:
        print(f"Left out: {format_count(counts.empty, 'record')} without text.")
    if manifest["duplicates"]:
        print(f"Left out: {format_count(manifest['duplicates'], 'duplicate document')}.")
    if counts.rejected:
        file = folder / REJECTED_FILE
        left_out = format_count(counts.rejected, "unusable record")
        print_escaped(f"Left out: {left_out}. {first_rejected(file)} {file} lists {describe_listed(counts.rejected)}.")
    print_failed_files(manifest)
    state = "complete except for these files" if manifest.get(FAILED) else "complete"
    print_escaped(f"The corpus is {state}: {folder}")


def print_failed_files(manifest: dict[str, Any]) -> None:
    """Print the names of files that could not be read to their end."""
    failed = manifest.get(FAILED)
    if isinstance(failed, list) and failed:
        print_escaped(f"The corpus is INCOMPLETE. The rest of {format_count(len(failed), 'file')} is missing:")
        for description in failed:
            print_escaped(f"  {escape_line(str(description))}")


def print_report(manifest: dict[str, Any], folder: Path) -> None:
    """Print document lengths, compression and excerpts for the training and the validation set."""
    tokenizer = open_prepared(LocalFiles(folder)).build_tokenizer()
    for name, part in manifest["parts"].items():
        if not part["documents"]:
            continue
        has_end = tokenizer.eos_id is not None
        size, text_tokens = format_si(part["bytes"], "B"), part["tokens"] - part["documents"] * has_end
        amounts = f"{format_count(part['documents'], 'document')}, {format_count(part['tokens'], 'token')}"
        print_escaped(f"\n{escape_line(name)}: {amounts}, {size} of text")
        print(f"{part['bytes'] / max(text_tokens, 1):.2f} bytes of text per token, not counting end-of-text tokens")
        print("\n".join(length_histogram(part, folder, has_end=has_end)))
        for number in sorted({part["documents"] * index // N_EXCERPTS for index in range(N_EXCERPTS)}):
            excerpt = document_excerpt(part, folder, number, tokenizer, manifest["itemsize"])
            print_escaped(f"\n  document {number + 1:,}: {excerpt}")


def length_histogram(part: dict[str, Any], folder: Path, *, has_end: bool = True) -> list[str]:
    """Return the lines of a histogram of document lengths in tokens, with bins that double in width.

    Args:
        part: The manifest's entry for the training or validation set.
        has_end: Whether each document ends with an end-of-text token. That token does not count.
    """
    bins = np.zeros(64, np.int64)
    total, longest, shortest = 0, 0, 1 << 62
    for lengths in _document_lengths(part, folder, n_end_tokens=int(has_end)):
        bins += np.bincount(np.frexp(lengths.astype(float))[1], minlength=64)
        longest, shortest = max(longest, int(lengths.max())), min(shortest, int(lengths.min()))
        total += int(lengths.sum())
    (used,) = np.nonzero(bins)
    lines = [f"Tokens per document: {shortest:,} to {longest:,}, {total / part['documents']:,.0f} on average"]
    for index in range(int(used[0]), int(used[-1]) + 1):
        low, high = (1 << index) // 2, (1 << index) - 1
        bar = "#" * -(-BAR_WIDTH * int(bins[index]) // int(bins.max()))
        lines.append(f"  {low:>12,} to {high:<12,} {bins[index]:>12,}  {bar}".rstrip())
    return lines


def document_excerpt(part: dict[str, Any], folder: Path, number: int, tokenizer: Tokenizer, itemsize: int) -> str:
    """Return the beginning of a document in one line.

    Args:
        part: The manifest's entry for the training or validation set.
        number: Index of the document in this set.
        itemsize: Bytes per token.
    """
    shards, first = part["shards"], 0
    while number >= shards[first]["documents"]:
        number, first = number - shards[first]["documents"], first + 1
    shards = shards[first:]  # There may be any number of empty ones.
    start = int(np.fromfile(folder / shards[0]["starts"], "<u8", count=1, offset=8 * number)[0])
    if start > shards[0]["tokens"]:
        raise _damaged(folder / shards[0]["starts"])
    ids: list[int] = []
    end = -1 if tokenizer.eos_id is None else tokenizer.eos_id
    for shard in shards:
        if len(ids) >= EXCERPT_TOKENS or end in ids:
            break
        file = folder / shard["file"]
        ids += np.fromfile(file, f"<u{itemsize}", count=EXCERPT_TOKENS - len(ids), offset=start * itemsize).tolist()
        start = 0
        if max(ids, default=0) >= tokenizer.vocab_size:
            raise UserError(
                f"{file} has token id {max(ids)}, but tokenizer={tokenizer.name} has only {tokenizer.vocab_size} ids. Copy it "
                "again, or prepare the corpus again."
            )
    complete = end in ids
    text = decode(tokenizer, ids[: ids.index(end)] if complete else ids)
    return " ".join(text.split()) + ("" if complete else " ...")


def _document_lengths(part: dict[str, Any], folder: Path, *, n_end_tokens: int) -> Iterator[np.ndarray]:
    """Yield the lengths of all documents without end-of-text tokens, several at a time."""
    shard_start, last_start = 0, np.empty(0, np.int64)
    for shard in part["shards"]:
        for first in range(0, shard["documents"], STARTS_AT_A_TIME):
            offsets = np.fromfile(folder / shard["starts"], "<u8", count=STARTS_AT_A_TIME, offset=8 * first).astype(np.int64)
            if offsets.max(initial=0) > shard["tokens"]:
                raise _damaged(folder / shard["starts"])
            starts = np.concatenate([last_start, offsets + shard_start])
            if len(starts) > 1:
                yield _checked(np.diff(starts) - n_end_tokens, folder / shard["starts"])
            last_start = starts[-1:]
        shard_start += shard["tokens"]
    yield _checked(shard_start - last_start - n_end_tokens, folder / part["shards"][-1]["starts"])


def _checked(lengths: np.ndarray, file: Path) -> np.ndarray:
    """Return the lengths of documents.

    Raises:
        UserError: If a length is below 0.
    """
    if lengths.min(initial=0) < 0:
        raise _damaged(file)
    return lengths


def _damaged(file: Path) -> UserError:
    return UserError(
        f"{file} is damaged: a document in it would begin after its end. Copy it again, or prepare the corpus again."
    )

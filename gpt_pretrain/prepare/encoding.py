"""Encode the inputs into segments with all workers, and stop if too many records are rejected."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare.encoded_batch import MAX_LISTED, EncodedBatch
from gpt_pretrain.prepare.processes import Interrupt, WorkerPool
from gpt_pretrain.prepare.progress import PreparationProgress
from gpt_pretrain.prepare.segments import JOURNAL, REJECTED_FILE, RecordCounts, SegmentWriter
from gpt_pretrain.prepare.tokenizing import cached_encoder, cached_tokenizer, encode_batch
from gpt_pretrain.system.files import open_for_append, write_text
from gpt_pretrain.system.formatting import format_count
from gpt_pretrain.system.json_files import parse_json
from gpt_pretrain.system.reading import DamagedFileError, open_regular
from gpt_pretrain.system.terminal import escape_line, print_escaped
from gpt_pretrain.texts.chunks import (
    FIELD_MISSING,
    FILE_FAILURES,
    NOT_UNPACKED,
    NOT_UTF8,
    NOTHING_TO_READ,
    TASK_ADVICE,
    TASK_ITEM,
    Chunk,
    ReadPosition,
)
from gpt_pretrain.texts.inputs import CorpusInputs
from gpt_pretrain.texts.invalid_utf8 import encoding_advice
from gpt_pretrain.texts.reading import batch_chunks, read_inputs
from gpt_pretrain.tokenizers.fast_encoding.fast_encoder import DifferentIdsError

# The error suggests leaving rejected records out if their share is at most this.
MAX_SUGGESTED = 0.5
ENOUGH_RECORDS = 10_000  # The rejected share is judged before the end only after this many records.
WITHOUT_LIBRARY = "without-gigatoken"  # A file in the folder of the segments.
MOST_FAILED_SHOWN = 10
N_EXAMPLES = 3  # Rejected records shown in a message.


@dataclass(frozen=True)
class EncodingOptions:
    """The options of the encoding stage.

    Args:
        tokenizer: Name of the tokenizer.
        itemsize: Bytes per token.
        text_field: Field of a record that contains the text.
        max_rejected: Largest share of rejected records, 0 to 1.
        max_failed_files: Largest number of files that cannot be read to their end.
        rejected_file: The file for a copy of the rejected records if there are too many.
        records_as_is: Encode records like version 0.1.0, to continue a corpus that it started.
        fast: Use the fast library, unless it has given other ids than the tokenizer before.
    """

    tokenizer: str
    itemsize: int
    text_field: str
    max_rejected: float
    max_failed_files: int
    rejected_file: Path
    records_as_is: bool = False
    fast: bool = False


def encode_inputs(
    inputs: CorpusInputs,
    options: EncodingOptions,
    folder: Path,
    *,
    workers: WorkerPool,
    progress: PreparationProgress,
    interrupt: Interrupt,
) -> None:
    """Encode the rest of the inputs: everything that the segments in a folder do not contain yet.

    If the fast library gives other ids than the tokenizer, everything is encoded again without it.

    Raises:
        UserError: If too many records are rejected, too many files cannot be read to their end, or the inputs have changed.
        SystemExit: If a signal has arrived.
    """
    options = replace(options, fast=options.fast and not is_without_library(folder))
    encode = partial(_encode_rest, inputs, folder=folder, workers=workers, progress=progress, interrupt=interrupt)
    try:
        encode(options)
    except DifferentIdsError as error:
        print_escaped(f"{error}. All texts are encoded again without gigatoken, which takes longer.", file=sys.stderr)
        start_without_library(folder)
        encode(replace(options, fast=False))


def _encode_rest(
    inputs: CorpusInputs,
    options: EncodingOptions,
    *,
    folder: Path,
    workers: WorkerPool,
    progress: PreparationProgress,
    interrupt: Interrupt,
) -> None:
    """Encode the rest of the inputs, either with the fast library or without it.

    Raises:
        DifferentIdsError: If the library gives other ids than the tokenizer.
    """
    writer = SegmentWriter(folder, itemsize=options.itemsize)
    try:
        if writer.state.complete:
            return
        progress.start_encoding(writer.state.counts)
        encode: Callable[[list[Chunk]], EncodedBatch] = partial(
            encode_batch,
            tokenizer_name=options.tokenizer,
            text_field=options.text_field,
            as_is=options.records_as_is,
            fast=options.fast,
        )
        jobs = batch_chunks(read_inputs(inputs, cached_tokenizer(options.tokenizer), start=writer.state.after))
        with ThreadPoolExecutor(1) as thread:
            comparison = thread.submit(cached_encoder(options.tokenizer, use_library=options.fast).compare_vocabulary)
            if workers.count == 1:
                comparison.result()  # This process then uses the encoder itself, which takes one text at a time.
            for chunks, batch in workers.map(encode, jobs, size=lambda chunks: sum(chunk.size for chunk in chunks)):
                if comparison.done():
                    comparison.result()
                _add_batch(batch, chunks[-1].end, writer, options)
                progress.update_encoding(writer.state.counts, bytes_read=chunks[-1].bytes_read)
                if interrupt.signal:
                    writer.finish_segment()
                    interrupt.exit_if_requested()
            comparison.result()
        writer.finish_segment(complete=True)
    finally:
        writer.close()


def _add_batch(batch: EncodedBatch, end: ReadPosition, writer: SegmentWriter, options: EncodingOptions) -> None:
    """Append a batch to the segments.

    Args:
        end: The position in the inputs after the batch.

    Raises:
        UserError: If too many files cannot be read to their end, or too many records are rejected.
    """
    failed = [record for record in batch.rejected if record.fails_file]
    if failed and writer.state.counts.failed_files + len(failed) > options.max_failed_files:
        writer.finish_segment()  # Without this batch, so that the same command reads the files again.
        raise failed_files_error([dataclasses.asdict(record) for record in failed])
    writer.add(batch, end)
    if too_many_rejected(writer.state.counts, options.max_rejected, at_end=False):
        writer.finish_segment()
        collect_rejected([writer.folder], options.rejected_file)
        raise rejection_error(writer.state.counts, options.rejected_file, max_rejected=options.max_rejected)


def is_without_library(folder: Path) -> bool:
    """Return whether the fast library has given other ids than the tokenizer for a text in this folder."""
    return (folder / WITHOUT_LIBRARY).exists()


def start_without_library(folder: Path) -> None:
    """Discard the segments in a folder, and record that the fast library must not be used for it."""
    (folder / JOURNAL).unlink(missing_ok=True)  # First, so that a process started after a kill finds the difference again.
    write_text(folder / WITHOUT_LIBRARY, "")


def collect_rejected(folders: Iterable[Path], target: Path) -> None:
    """Concatenate the lists of rejected records of several folders. Without rejected records, no file is left."""
    target.unlink(missing_ok=True)
    listed = 0
    for folder in folders:
        file = folder / REJECTED_FILE
        if file.is_file() and file.stat().st_size:
            with open_regular(file, within=folder) as source, open_for_append(target) as stream:
                for line in source:
                    fails_file = _read_rejected(line, file)["reason"] in FILE_FAILURES
                    listed += not fails_file
                    if fails_file or listed <= MAX_LISTED:
                        stream.write(line)


def failed_files_error(records: Sequence[dict[str, Any]]) -> UserError:
    """Return the error for files that cannot be read to their end, or have no readable content.

    Args:
        records: The fields of the rejected record that stands for the rest of each file.
    """
    without_text = all(record["reason"] == NOTHING_TO_READ for record in records)
    count, is_one = format_count(len(records), "file"), len(records) == 1
    if without_text:
        what, remedy = f"{count} {'contains' if is_one else 'contain'} no text", f"Leave {'it' if is_one else 'them'} out"
    elif all(record["reason"] == NOT_UNPACKED for record in records):
        what, remedy = f"{count} {'is' if is_one else 'are'} not read", f"Do that or leave {'it' if is_one else 'them'} out"
    else:
        what, remedy = f"{count} cannot be read to {'its' if is_one else 'their'} end", "Replace or leave out what is damaged"
    shown = "; ".join(map(describe_rejected, records[:MOST_FAILED_SHOWN]))
    return UserError(
        f"{what}: {shown}{'; ...' * (len(records) > MOST_FAILED_SHOWN)}. {remedy} and start over with overwrite=true, or accept "
        f"{'this' if without_text else 'that its text is missing'} with max_failed_files={len(records)}: the same command then "
        "resumes."
    )


def too_many_rejected(counts: RecordCounts, max_rejected: float, *, at_end: bool) -> bool:
    """Return whether more records are rejected than allowed. Before the end, judge only after ENOUGH_RECORDS."""
    return counts.rejected > max_rejected * counts.records and (at_end or counts.records >= ENOUGH_RECORDS)


def rejection_error(counts: RecordCounts, file: Path, *, max_rejected: float) -> UserError:
    """Return the error for too many rejected records.

    Args:
        file: The file that lists them.
    """
    share = counts.rejected / counts.records
    reasons = ", ".join(f"{reason}: {number:,}" for reason, number in sorted(counts.by_reason.items()))
    remedy = "Correct them and start over with overwrite=true"
    if counts.by_reason.get(FIELD_MISSING, 0) > counts.rejected / 2:
        remedy = "Set text_field= to the field that contains the text, or correct the records and start over with overwrite=true"
    if counts.by_reason.get(NOT_UTF8, 0) > counts.rejected / 2 and (advice := _first_encoding(file)):
        remedy = f"{advice.rstrip('.')}. Then start over with overwrite=true"
    if counts.by_reason.get(TASK_ITEM, 0) > counts.rejected / 2:
        remedy = TASK_ADVICE.format("FILE")
    elif share < MAX_SUGGESTED:
        remedy += f", or leave them out with max_rejected={_round_up(share):g}: the same command then resumes"
    listed = f"{file} lists {describe_listed(counts.rejected)}"
    return UserError(
        f"{counts.rejected:,} of {format_count(counts.records, 'record')} ({100 * share:.3g}%) cannot be used ({reasons}), more "
        f"than max_rejected={max_rejected:g} allows. {first_rejected(file)} {listed}. {remedy}."
    )


def describe_listed(rejected: int) -> str:
    """Describe how many of the rejected records the file lists."""
    return "all of them" if rejected <= MAX_LISTED else f"the first {MAX_LISTED:,}"


def first_rejected(file: Path) -> str:
    """Describe the first records in a file of rejected records."""
    descriptions = []
    with open_regular(file, within=file.parent) as stream:
        for _, line in zip(range(N_EXAMPLES), stream, strict=False):
            descriptions.append(describe_rejected(_read_rejected(line, file)))
    return "First: " + "; ".join(descriptions) + "."


def _first_encoding(file: Path) -> str:
    """Return advice on converting the file of the first rejected record to UTF-8, or nothing if its encoding is unclear."""
    with open_regular(file, within=file.parent) as stream:
        return encoding_advice(_read_rejected(stream.readline(), file)["file"])


def failed_files(file: Path) -> list[dict[str, Any]]:
    """Return the fields of all files in a file of rejected records that could not be read to their end."""
    with open_regular(file, within=file.parent) as stream:
        records = (_read_rejected(line, file) for line in stream)
        return [record for record in records if record["reason"] in FILE_FAILURES]


def _read_rejected(line: bytes, file: Path) -> dict[str, Any]:
    """Return the fields of a rejected record.

    Raises:
        UserError: If this program cannot have written the line.
    """
    try:
        record = parse_json(line)
    except DamagedFileError as error:
        raise UserError(f"{file} is damaged: {error}. Start over with overwrite=true.") from error
    if not all(isinstance(record.get(name, ""), str) for name in ("file", "reason", "detail")) or not {"file", "reason"} <= set(
        record
    ):
        raise UserError(f"{file} is damaged: a line of it describes no rejected record. Start over with overwrite=true.")
    return record


def describe_rejected(record: dict[str, Any]) -> str:
    """Describe a rejected record from its fields."""
    if record["reason"] == NOTHING_TO_READ:
        return escape_line(f"{record['file']}: {record.get('detail', '').rstrip('.')}")
    detail = f" ({record['detail']})" if record.get("detail") else ""
    return escape_line(f"{record['file']}, record {record.get('record')}: {record['reason']}{detail}")


def _round_up(share: float) -> float:
    """Return a slightly larger share with two digits."""
    return min(float(f"{1.1 * share:.1e}"), 1.0)

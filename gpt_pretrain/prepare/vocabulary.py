"""Train a vocabulary on a corpus: read the corpus as a stream, keep a sample, train on the sample, and write the folder last."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gpt_pretrain.config.command_schema import VocabularySettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare.corpus_folder import check_output_folder, folder_not_writable
from gpt_pretrain.prepare.encoding import describe_rejected, too_many_rejected
from gpt_pretrain.prepare.progress import PreparationProgress
from gpt_pretrain.prepare.segments import RecordCounts
from gpt_pretrain.prepare.vocabulary_report import describe_vocabulary
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.files import make_writable_folder, replacing
from gpt_pretrain.system.formatting import format_count, format_duration, format_si
from gpt_pretrain.system.terminal import print_escaped
from gpt_pretrain.texts.chunks import NOT_UNPACKED, NOTHING_TO_READ, Chunk, ReadPosition, RejectedRecord
from gpt_pretrain.texts.documents import divide_documents
from gpt_pretrain.texts.inputs import find_inputs
from gpt_pretrain.texts.invalid_utf8 import InvalidTexts
from gpt_pretrain.texts.reading import read_inputs
from gpt_pretrain.texts.records.record_text import InvalidRecordError, chunk_records, record_text
from gpt_pretrain.texts.sampling import HASHES, MANY_WORDS, TextSample, cut_pieces, hash_piece
from gpt_pretrain.tokenizers.base import END_OF_TEXT
from gpt_pretrain.tokenizers.bpe_training import train_bpe
from gpt_pretrain.tokenizers.byte import ByteTokenizer
from gpt_pretrain.tokenizers.saving import TOKENIZER_FILES, tokenizer_files
from gpt_pretrain.tokenizers.vocabulary import VocabularyTokenizer

HELD_OUT_SHARE = 10  # The held-out sample's size limit is the training sample's divided by this.
N_EXAMPLES = 3


@dataclass(frozen=True)
class VocabularySamples:
    """The training texts of a vocabulary, the held-out texts, and the size of the corpus in bytes."""

    training: TextSample
    held_out: TextSample
    corpus_bytes: int


def train_vocabulary(settings: VocabularySettings) -> VocabularySamples:
    """Train a vocabulary by the settings, write it, print a report, and return the texts.

    Raises:
        UserError: If an input is missing or cannot be read, or the folder holds other files.
    """
    folder = user_path(settings.out)
    _check_folder(folder, settings)
    samples = _read_samples(settings, folder)
    training, held_out = samples.training, samples.held_out
    many_words = f" {MANY_WORDS}" * training.limit_words()
    print_escaped(
        f"Training {format_count(settings.vocab_size, 'token')} on {format_si(training.n_bytes, 'B')} of text"
        f"{'' if training.is_complete else f', a sample of the corpus{many_words} (sample_bytes=)'} ...",
        file=sys.stderr,
    )
    start = time.monotonic()
    tokenizer = _train(settings, training, folder)
    print_escaped(f"Trained in {format_duration(time.monotonic() - start)}.", file=sys.stderr)
    if _write(tokenizer, folder):
        print_escaped(f"warning: out={settings.out} held another vocabulary. This one has replaced it.", file=sys.stderr)
    if tokenizer.vocab_size < settings.vocab_size:
        missing = (
            f"vocab_size={settings.vocab_size} is more than this text has: the vocabulary has {tokenizer.vocab_size:,} tokens."
        )
        print_escaped(f"warning: {missing}", file=sys.stderr)
    print_escaped("\n".join(describe_vocabulary(tokenizer, training, held_out)))
    print_escaped(f"The vocabulary is complete: {folder}. To use it: tokenizer={settings.out}")
    return samples


def _check_folder(folder: Path, settings: VocabularySettings) -> None:
    """Check that a folder is free for a vocabulary.

    Raises:
        UserError: If it is a file, or holds anything but an earlier vocabulary.
    """
    check_output_folder(folder, out=settings.out, content="the vocabulary")
    if folder.resolve() == Path.cwd():
        raise UserError(f"out={settings.out} is the current folder. A vocabulary needs a folder of its own.")
    others = sorted(path.name for path in folder.iterdir() if path.name not in TOKENIZER_FILES) if folder.is_dir() else []
    if others:
        raise UserError(
            f"out={settings.out} holds {', '.join(others[:3])}{' and more' * (len(others) > 3)}. A vocabulary needs a folder of "
            "its own. Choose another one."
        )
    try:  # before the text is read
        make_writable_folder(folder.parent)
    except OSError as error:
        raise folder_not_writable(folder, error) from error


def special_names(settings: VocabularySettings) -> list[str]:
    """Return the names of the special tokens in the settings."""
    return [name for name in map(str.strip, settings.special_tokens.split(",")) if name]


def _read_samples(settings: VocabularySettings, folder: Path) -> VocabularySamples:
    """Read the corpus, and return the samples to train on and to measure on. The second may be empty.

    Raises:
        UserError: If the corpus is empty, or too much of it cannot be read.
    """
    inputs, counts = find_inputs(settings, out=folder), RecordCounts()
    training, held_out = TextSample(settings.sample_bytes), TextSample(max(settings.sample_bytes // HELD_OUT_SHARE, 1))
    threshold, rejected, invalid = int(settings.val_fraction * HASHES), list[RejectedRecord](), InvalidTexts()
    with PreparationProgress(inputs.size) as progress:
        progress.start_encoding(counts)
        for chunk in read_inputs(inputs, ByteTokenizer(), start=ReadPosition()):
            for text in _chunk_texts(chunk, settings.text_field, counts, rejected, invalid):
                for piece in cut_pieces(text):
                    data = piece.encode()
                    counts.text_bytes += len(data)
                    number = hash_piece(data)
                    (held_out if number < threshold else training).add(data, number)
            progress.update_encoding(counts, bytes_read=chunk.bytes_read)
            _check_rejected(rejected, counts, settings, at_end=False)
    _check_rejected(rejected, counts, settings, at_end=True)
    if not held_out.n_bytes and threshold and (smallest := training.take_smallest()) is not None:
        held_out.add(*smallest)
    if not training.n_bytes:
        raise UserError("The inputs contain no text to train a vocabulary on. Give files that contain text.")
    if training.is_complete:
        held_out = _return_excess(held_out, training, share=max(1 / HELD_OUT_SHARE, settings.val_fraction))
    return VocabularySamples(training, held_out, counts.text_bytes)


def _return_excess(held_out: TextSample, training: TextSample, *, share: float) -> TextSample:
    """Shrink the held-out sample to at most this share of both samples, and add the rest to the training sample.

    A short text has so few pieces that a single one may be most of it.
    """
    limit = int((held_out.n_bytes + training.n_bytes) * share)
    if held_out.n_bytes <= limit:
        return held_out
    kept = TextSample(held_out.max_bytes)
    for text in held_out.texts():
        head = text.encode()[: limit - kept.n_bytes].decode(errors="ignore")
        end = len(text) if len(head) == len(text) else max(head.rfind("\n"), head.rfind(" "), 0)
        for part, sample in ((text[:end], kept), (text[end:], training)):
            if part:
                sample.add(data := part.encode(), hash_piece(data))
    return kept


def _chunk_texts(
    chunk: Chunk, text_field: str, counts: RecordCounts, rejected: list[RejectedRecord], invalid: InvalidTexts
) -> Iterator[str]:
    """Yield the documents of a chunk, or the chunk itself if it is a part of one. Documents without text are left out."""
    for part in divide_documents(chunk, invalid):
        for text in _raw_texts(part, text_field, counts, rejected):
            for document in text.split(END_OF_TEXT):
                if document and not document.isspace():
                    yield document


def _raw_texts(chunk: Chunk, text_field: str, counts: RecordCounts, rejected: list[RejectedRecord]) -> Iterator[str]:
    if isinstance(chunk.content, RejectedRecord):
        _reject(chunk.content, counts, rejected)
    elif isinstance(chunk.content, str):
        counts.records += chunk.ends
        yield chunk.content
    else:
        for number, record in chunk_records(chunk):
            counts.records += 1
            try:
                text = record_text(record, text_field, is_json=isinstance(chunk.content, bytes))
                text.encode()
            except InvalidRecordError as error:
                _reject(RejectedRecord(chunk.file, number, *error.args), counts, rejected)
            except UnicodeEncodeError as error:
                detail = f"half a surrogate pair at character {error.start}"
                _reject(RejectedRecord(chunk.file, number, "not UTF-8", detail), counts, rejected)
            else:
                yield text


def _reject(record: RejectedRecord, counts: RecordCounts, rejected: list[RejectedRecord]) -> None:
    """Count a record that cannot be used, and keep the first of them.

    Raises:
        UserError: If the record stands for the rest of a file.
    """
    if record.fails_file:
        described = describe_rejected(dataclasses.asdict(record))
        if record.reason == NOTHING_TO_READ:
            raise UserError(f"A file contains no text: {described}. Leave it out.")
        if record.reason == NOT_UNPACKED:
            raise UserError(f"A file is not read: {described}. Do that or leave it out.")
        raise UserError(f"A file cannot be read to its end: {described}. Replace it or leave it out.")
    counts.by_reason[record.reason] = counts.by_reason.get(record.reason, 0) + 1
    if len(rejected) < N_EXAMPLES:
        rejected.append(record)


def _check_rejected(
    rejected: Iterable[RejectedRecord], counts: RecordCounts, settings: VocabularySettings, *, at_end: bool
) -> None:
    """Check that few records are unusable, and report at the end how many are left out.

    Raises:
        UserError: If there are too many.
    """
    first = "; ".join(describe_rejected(dataclasses.asdict(record)) for record in rejected)
    if too_many_rejected(counts, settings.max_rejected, at_end=at_end):
        raise UserError(
            f"{counts.rejected:,} of {format_count(counts.records, 'record')} cannot be used, more than "
            f"max_rejected={settings.max_rejected:g} allows. First: {first}. Correct them, set text_field= to the field that "
            "contains the text, or raise max_rejected=."
        )
    if at_end and counts.rejected:
        print_escaped(f"Left out: {format_count(counts.rejected, 'unusable record')}. First: {first}.", file=sys.stderr)


def _train(settings: VocabularySettings, sample: TextSample, folder: Path) -> VocabularyTokenizer:
    return train_bpe(
        sample.texts(),
        settings.vocab_size,
        label=folder.resolve().name,
        pattern=settings.pattern,
        special_tokens=special_names(settings),
    )


def _write(tokenizer: VocabularyTokenizer, folder: Path) -> bool:
    """Write the files of a vocabulary. The folder appears complete or not at all.

    Returns:
        Whether the folder had other files of these names.

    Raises:
        UserError: If it cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        files = tokenizer_files(tokenizer)
        replaces = any(
            (old := folder / name).is_file() and (old.stat().st_size != len(data := text.encode()) or old.read_bytes() != data)
            for name, text in files.items()
        )
        with replacing(folder) as scratch:
            scratch.mkdir()
            for name, content in files.items():
                (scratch / name).write_text(content, encoding="utf-8")
    except OSError as error:
        raise folder_not_writable(folder, error) from error
    return replaces

"""The vocabulary of tokenizer=bpe. It is trained on the training set of a text or of a mixture of texts, and kept in the cache.

The validation set is never used. A text is split by its characters, so the split does not depend on the vocabulary. A file in the
cache is named after everything that the vocabulary depends on, and it is signed like the token cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

from gpt_pretrain.config.schema import DataSettings
from gpt_pretrain.data.private_cache import CacheNotWritableError, not_writable, open_cache, open_own, temporary_cache
from gpt_pretrain.data.sources import check_sources, is_shard_path
from gpt_pretrain.data.text import cache_folder, find_text
from gpt_pretrain.data.token_cache import training_pieces
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.files import replacing
from gpt_pretrain.system.formatting import format_count, format_duration, format_si
from gpt_pretrain.system.json_files import parse_json
from gpt_pretrain.system.signing import SIGNATURE_BYTES, has_signature, signature
from gpt_pretrain.system.urls import without_secrets
from gpt_pretrain.texts.sampling import MANY_WORDS, SAMPLE_BYTES, TextSample, cut_pieces, hash_piece
from gpt_pretrain.texts.text import Text, TextCounts, check_text_unchanged
from gpt_pretrain.tokenizers.base import END_OF_TEXT
from gpt_pretrain.tokenizers.bpe_training import DEFAULT_PATTERN, TRAINED_NAME, TRAINING_RULES, train_bpe
from gpt_pretrain.tokenizers.formats.definition import MAX_VALUES
from gpt_pretrain.tokenizers.formats.vocabulary_files import MAX_FILE_BYTES
from gpt_pretrain.tokenizers.vocabulary import VocabularyTokenizer, restore_vocabulary

CACHE, PURPOSE = "tokenizers", "trained tokenizer"
MAX_REPEATS = 100  # of a small source with a large weight

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeightedText:
    """A text to train a vocabulary on, and its weight in a mixture."""

    text: Text
    weight: float


def trained_tokenizer(settings: DataSettings, *, vocab_size: int) -> VocabularyTokenizer:
    """Return the vocabulary of this size for the text or the mixture of texts in the settings, from the cache or newly trained.

    Raises:
        UserError: If the settings name no text, or it cannot be read.
    """
    cache_dir = cache_folder(settings)
    texts = _find_texts(settings, vocab_size, cache_dir=cache_dir)
    stamps = [stamp for one in texts for stamp in one.text.stamps()]
    checksums = [one.text.sha256() for one in texts]
    content = [[sha256, one.weight] for sha256, one in zip(checksums, texts, strict=True)] if len(texts) > 1 else checksums[0]
    inputs = [TRAINING_RULES, content, vocab_size, DEFAULT_PATTERN, settings.train_ratio, SAMPLE_BYTES]
    name = f"{hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:32]}.json"
    try:
        folder = open_cache(cache_dir, CACHE)
    except CacheNotWritableError:
        if settings.cache_dir is not None:
            raise
        folder = open_cache(temporary_cache(), CACHE)
    label = f"{TRAINED_NAME}-{vocab_size}"
    if (tokenizer := _load(folder / name, label)) is None:
        tokenizer = _train(texts, vocab_size, train_ratio=settings.train_ratio, label=label)
        check_text_unchanged(stamps)
        _save(folder / name, tokenizer)
    return tokenizer


def training_characters(settings: DataSettings, *, most: int) -> int:
    """Count the characters of the training set of a text or of a mixture of texts.

    Args:
        most: Counting stops at this number.

    Raises:
        UserError: If the settings name no text, or it cannot be read.
    """
    counts = TextCounts()
    for one in _find_texts(settings, None, cache_dir=cache_folder(settings)):
        for _ in one.text.pieces(counts):
            if counts.characters * settings.train_ratio >= most:
                return most
    return int(counts.characters * settings.train_ratio)


def first_characters(settings: DataSettings, count: int) -> str:
    """Return the first characters of a text, at most `count`. For a mixture, join those of all its texts.

    Raises:
        UserError: If the settings name no text, or it cannot be read.
    """
    beginnings = []
    for one in _find_texts(settings, None, cache_dir=cache_folder(settings)):
        counts, pieces = TextCounts(), list[str]()
        for piece in one.text.pieces(counts):
            pieces.append(piece)
            if counts.characters >= count:
                break
        beginnings.append("".join(pieces)[:count])
    return "".join(beginnings)


def _find_texts(settings: DataSettings, vocab_size: int | None, *, cache_dir: Path) -> list[WeightedText]:
    """Return the texts of the settings.

    Raises:
        UserError: If they name token shards, or no text.
    """
    if settings.name != "mixture":
        if settings.name == "shards":
            raise _needs_text(f"not with data={settings.name}", vocab_size)
        return [WeightedText(find_text(settings, cache_dir=cache_dir), 1.0)]
    check_sources(settings)
    for source in settings.sources:
        if is_shard_path(source.path):
            raise _needs_text(f"and {without_secrets(source.path)} in data.sources holds tokens", vocab_size)
    return [
        WeightedText(find_text(replace(settings, path=source.path), cache_dir=cache_dir), source.weight)
        for source in settings.sources
    ]


def _needs_text(what: str, vocab_size: int | None) -> UserError:
    size = "" if vocab_size is None else f" vocab_size={vocab_size}"
    return UserError(
        f"tokenizer={TRAINED_NAME} is trained on text, {what}. Train a vocabulary on the corpus first: gpt-pretrain tokenizer "
        f"TEXT out=FOLDER{size}, and prepare the corpus with tokenizer=FOLDER."
    )


def _train(texts: Sequence[WeightedText], vocab_size: int, *, train_ratio: float, label: str) -> VocabularyTokenizer:
    samples, sizes, total = list[TextSample](), list[int](), sum(one.weight for one in texts)
    for one in texts:
        sample, size = TextSample(int(SAMPLE_BYTES * one.weight / total)), 0
        for part in training_pieces(one.text, train_ratio=train_ratio):
            for piece in cut_pieces(part) if part != END_OF_TEXT else ():
                size += len(data := piece.encode())
                sample.add(data, hash_piece(data))
        samples.append(sample)
        sizes.append(size)
    limited = [sample.limit_words() for sample in samples]
    n_bytes = min(SAMPLE_BYTES, sum(sizes)) if len(texts) > 1 else samples[0].n_bytes
    log.info(
        "Training a vocabulary of %s on %s of the training set%s ...",
        format_count(vocab_size, "token"),
        format_si(n_bytes, "B"),
        "" if all(sample.is_complete for sample in samples) else f", a sample of it{f' {MANY_WORDS}' * any(limited)}",
    )
    start = time.monotonic()
    tokenizer = train_bpe(_in_proportion(samples, [one.weight / total for one in texts], n_bytes), vocab_size, label=label)
    log.info("Trained %s in %s", tokenizer.name, format_duration(time.monotonic() - start))
    return tokenizer


def _in_proportion(samples: Sequence[TextSample], shares: Sequence[float], n_bytes: int) -> Iterator[str]:
    """Yield the samples in these shares of n_bytes. A sample that is smaller than its share is read several times."""
    if len(samples) == 1:
        yield from samples[0].texts()
        return
    for sample, share in zip(samples, shares, strict=True):
        left = min(round(share * n_bytes), MAX_REPEATS * sample.n_bytes)
        for text in cycle(sample.texts()):
            data = text.encode()
            yield text if len(data) <= left else data[:left].decode(errors="ignore")
            left -= len(data)
            if left <= 0:
                break


def _load(path: Path, label: str) -> VocabularyTokenizer | None:
    """Return the vocabulary in a file of the cache, or None if it is missing, damaged or not written by this user."""
    try:
        with open_own(path) as stream:
            signed, definition = stream.read(SIGNATURE_BYTES), stream.read(MAX_FILE_BYTES)
        if not has_signature(_signed_content(path, definition), signed, purpose=PURPOSE):
            return None
        return restore_vocabulary(label, parse_json(definition.decode(), max_values=MAX_VALUES))
    except (OSError, ValueError):
        return None


def _save(path: Path, tokenizer: VocabularyTokenizer) -> None:
    """Write a vocabulary to the cache.

    Raises:
        CacheNotWritableError: If it cannot be written.
    """
    definition = tokenizer.definition.encode()
    try:
        with replacing(path) as scratch:
            scratch.write_bytes(signature(_signed_content(path, definition), purpose=PURPOSE) + definition)
    except OSError as error:
        raise not_writable(path.parent, error) from error


def _signed_content(path: Path, definition: bytes) -> bytes:
    return path.name.encode() + b"\0" + definition

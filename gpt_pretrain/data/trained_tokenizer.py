"""The vocabulary of tokenizer=bpe: trained on the training set of a text, and kept in the cache.

The text is split by its characters, which no vocabulary changes, so nothing of the validation set is ever learned from. A file
in the cache is named after everything that the vocabulary depends on. It is signed, as the token cache is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from pathlib import Path

from gpt_pretrain.config.schema import DataSettings
from gpt_pretrain.data.private_cache import CacheNotWritableError, not_writable, open_cache, open_own, temporary_cache
from gpt_pretrain.data.text import cache_folder, find_text
from gpt_pretrain.data.token_cache import training_pieces
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.files import replacing
from gpt_pretrain.system.formatting import format_count, format_duration, format_si
from gpt_pretrain.system.reading import parse_json
from gpt_pretrain.system.signing import SIGNATURE_BYTES, has_signature, signature
from gpt_pretrain.texts.sampling import SAMPLE_BYTES, TextSample, cut_pieces, hash_piece
from gpt_pretrain.texts.text import Text, check_text_unchanged
from gpt_pretrain.tokenizers.base import END_OF_TEXT
from gpt_pretrain.tokenizers.bpe_training import DEFAULT_PATTERN, TRAINED_NAME, TRAINING_RULES, train_bpe
from gpt_pretrain.tokenizers.definition import MAX_VALUES
from gpt_pretrain.tokenizers.vocabulary import VocabularyTokenizer, restore_vocabulary
from gpt_pretrain.tokenizers.vocabulary_files import MAX_FILE_BYTES

CACHE, PURPOSE = "tokenizers", "trained tokenizer"

log = logging.getLogger(__name__)


def trained_tokenizer(settings: DataSettings, *, vocab_size: int) -> VocabularyTokenizer:
    """Return the vocabulary of this size for the text that the settings name, from the cache or newly trained.

    Raises:
        UserError: If the settings name no text, or it cannot be read.
    """
    if settings.name in ("shards", "mixture"):
        raise UserError(
            f"tokenizer={TRAINED_NAME} is trained on the text of data=text, not with data={settings.name}. For corpora, train a "
            "vocabulary with gpt-pretrain tokenizer, and prepare them with tokenizer=FOLDER."
        )
    cache_dir = cache_folder(settings)
    text = find_text(settings, cache_dir=cache_dir)
    stamps = text.stamps()
    inputs = [TRAINING_RULES, text.sha256(), vocab_size, DEFAULT_PATTERN, settings.train_ratio, SAMPLE_BYTES]
    name = f"{hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:32]}.json"
    try:
        folder = open_cache(cache_dir, CACHE)
    except CacheNotWritableError:
        if settings.cache_dir is not None:
            raise
        folder = open_cache(temporary_cache(), CACHE)
    label = f"{TRAINED_NAME}-{vocab_size}"
    if (tokenizer := _load(folder / name, label)) is None:
        tokenizer = _train(text, vocab_size, train_ratio=settings.train_ratio, label=label)
        check_text_unchanged(stamps)
        _save(folder / name, tokenizer)
    if tokenizer.vocab_size < vocab_size:
        log.warning(
            "tokenizer.vocab_size=%d is more than this text has: its vocabulary has %d tokens", vocab_size, tokenizer.vocab_size
        )
    return tokenizer


def _train(text: Text, vocab_size: int, *, train_ratio: float, label: str) -> VocabularyTokenizer:
    sample = TextSample(SAMPLE_BYTES)
    for part in training_pieces(text, train_ratio=train_ratio):
        for piece in cut_pieces(part) if part != END_OF_TEXT else ():
            sample.add(data := piece.encode(), hash_piece(data))
    log.info(
        "Training a vocabulary of %s on %s of the training set%s ...",
        format_count(vocab_size, "token"),
        format_si(sample.n_bytes, "B"),
        "" if sample.is_complete else ", the pieces with the smallest hashes",
    )
    start = time.monotonic()
    tokenizer = train_bpe(sample.texts(), vocab_size, label=label)
    log.info("Trained %s in %s; it is kept in the cache", tokenizer.name, format_duration(time.monotonic() - start))
    return tokenizer


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

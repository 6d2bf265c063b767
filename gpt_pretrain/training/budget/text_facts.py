"""Describe a text by the numbers that the expected loss depends on."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

from gpt_pretrain.config.schema import DataSettings
from gpt_pretrain.data.text import cache_folder, find_text
from gpt_pretrain.data.token_cache import sample_split
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.formatting import format_count
from gpt_pretrain.tokenizers.base import Tokenizer
from gpt_pretrain.tokenizers.bpe_training import train_bpe_sizes
from gpt_pretrain.tokenizers.fast_encoding.fast_encoder import WORTHWHILE, FastEncoder
from gpt_pretrain.training.budget import pilot
from gpt_pretrain.training.budget.choice import TextFacts
from gpt_pretrain.training.budget.law import STUDIED_VOCABULARY, Difficulty
from gpt_pretrain.training.budget.ngrams import frequency_bits, ngram_bits

SAMPLE_BYTES, HELD_OUT_BYTES = 500_000, 60_000  # size of a sample of the training set, and of the validation set
FEWEST_CHARACTERS = 16
PARTS = 16  # parts of each sample, spread over the text
COUNTED_BYTES = (20_000, 125_000, SAMPLE_BYTES)  # training text of the n-gram models
ALWAYS_COUNTED = 2  # of these sizes: from one alone, the law would conclude that more text is worth nothing
COUNTING_SHARE, PILOT_SHARE = 0.5, 0.4  # shares of the time for describing a text: the largest n-gram model, the pilot
ENCODED_BYTES = 100_000  # to measure bytes per token


def describe_text(
    settings: DataSettings, vocab_sizes: Sequence[int], *, tokenizer: Tokenizer | None = None, seconds: float = math.inf
) -> TextFacts:
    """Read samples of a text, and return its facts.

    Args:
        vocab_sizes: Sizes of the vocabularies to choose from. They are trained on the text.
        tokenizer: The tokenizer to use instead of them.
        seconds: Approximate time limit, without the reading.

    Raises:
        UserError: If there is no such text, or it cannot be read.
    """
    text = find_text(settings, cache_dir=cache_folder(settings))
    sample, held_out, n_bytes = sample_split(
        text, train_ratio=settings.train_ratio, train=SAMPLE_BYTES, held_out=HELD_OUT_BYTES, parts=PARTS
    )
    if len(sample) < FEWEST_CHARACTERS or not held_out:
        raise UserError(
            f"The text has {format_count(len(sample) + len(held_out), 'character')}, too few to learn from. Give more text with "
            "data.path=FILE, DIRECTORY or GLOB."
        )
    return text_facts(sample, held_out, vocab_sizes, tokenizer=tokenizer, unique_bytes=n_bytes, seconds=seconds)


def text_facts(
    sample: str,
    held_out: str,
    vocab_sizes: Sequence[int],
    *,
    unique_bytes: int,
    tokenizer: Tokenizer | None = None,
    seconds: float = math.inf,
) -> TextFacts:
    """Return the facts of a text from samples of its training set and of held-out text."""
    sample, held_out = spread(sample, SAMPLE_BYTES), spread(held_out, HELD_OUT_BYTES)
    start = time.monotonic()
    tokenizers = {one.vocab_size: one for one in train_bpe_sizes([sample], sorted({*vocab_sizes, pilot.VOCAB_SIZE}))}
    lengths, rate = _bytes_per_token(tokenizers, spread(sample, ENCODED_BYTES))
    usable: dict[int, Tokenizer] = {size: one for size, one in tokenizers.items() if size in vocab_sizes}
    usable = usable or {max(lengths): tokenizers[max(lengths)]}  # a short text has fewer tokens
    pilot_tokenizer: Tokenizer = tokenizers.get(pilot.VOCAB_SIZE, tokenizers[max(tokenizers)])
    if tokenizer is not None:
        usable = {tokenizer.vocab_size: tokenizer}
        lengths, rate = _bytes_per_token(usable, spread(sample, ENCODED_BYTES))
        if unique_bytes < lengths[tokenizer.vocab_size] * tokenizer.vocab_size:  # What its words are worth is still unknown.
            pilot_tokenizer = tokenizer
    ngrams = counted(sample, held_out, seconds=COUNTING_SHARE * (seconds - (time.monotonic() - start)))
    training, bits = pilot.run_pilot(
        pilot_tokenizer,
        sample,
        held_out,
        unique_bytes=unique_bytes,
        seconds=min(seconds - (time.monotonic() - start), PILOT_SHARE * seconds),
    )
    if not math.isfinite(bits):  # the pilot has diverged
        bits = min(ngrams.values())
    difficulty = Difficulty(training, bits, ngrams, frequency_bits(sample.encode(), held_out.encode()))
    return TextFacts(
        unique_bytes,
        {size: lengths[size] for size in usable},
        difficulty,
        seconds_to_encode=_seconds_to_encode(next(iter(usable.values())), sample, unique_bytes, rate),
        longest_windows={size: len(one.encode_ordinary(held_out)) - 1 for size, one in usable.items()},
        distinct_tokens={
            size: _distinct_tokens(one, sample, unique_bytes) for size, one in usable.items() if size > STUDIED_VOCABULARY
        },
        tokenizer=None if tokenizer is None else tokenizer.name,
    )


def _bytes_per_token(tokenizers: Mapping[int, Tokenizer], text: str) -> tuple[dict[int, float], float]:
    """Return the bytes per token by the size of the vocabulary, and the shortest time to encode a byte, in seconds."""
    lengths, rates, n_bytes = dict[int, float](), list[float](), max(len(text.encode()), 1)
    for size, tokenizer in tokenizers.items():
        start = time.monotonic()
        lengths[size] = n_bytes / max(len(tokenizer.encode_ordinary(text)), 1)
        rates.append((time.monotonic() - start) / n_bytes)
    return lengths, min(rates)


def _distinct_tokens(tokenizer: Tokenizer, sample: str, n_bytes: int) -> float:
    """Estimate the distinct tokens of a text of this many bytes. In a long text, they grow with the square root of its length."""
    part = spread(sample, ENCODED_BYTES)
    found = len(set(tokenizer.encode_ordinary(part))) * math.sqrt(max(n_bytes / max(len(part.encode()), 1), 1.0))
    return min(found, tokenizer.vocab_size)


def _seconds_to_encode(tokenizer: Tokenizer, sample: str, n_bytes: int, rate: float) -> float:
    """Estimate the time to encode a whole text of this many bytes. A large text is encoded with the fast library.

    Args:
        rate: The tokenizer's own seconds per byte.
    """
    if n_bytes < WORTHWHILE:
        return n_bytes * rate
    start = time.monotonic()
    encoder = FastEncoder(tokenizer)
    built = time.monotonic()
    encoder.encode(sample)
    return built - start + (time.monotonic() - built) * n_bytes / len(sample.encode())


def counted(sample: str, held_out: str, *, seconds: float = math.inf) -> dict[int, float]:
    """Return the bits per byte of held-out text with n-gram models, by the number of counted bytes.

    Args:
        seconds: The longest time for the largest n-gram model. It is left out if it would take longer.
    """
    n_bytes, asked, found = len(sample.encode()), held_out.encode(), dict[int, float]()
    took = 0.0
    for size in sorted({min(size, n_bytes) for size in COUNTED_BYTES}):
        if len(found) >= ALWAYS_COUNTED and took * size / max(found) > seconds:
            break
        start = time.monotonic()
        found[size] = ngram_bits(spread(sample, size).encode(), asked)
        took = time.monotonic() - start
    return found


def spread(text: str, n_bytes: int) -> str:
    """Return parts of a text, evenly spread over it."""
    share = n_bytes / max(len(text.encode()), 1)
    if share >= 1:
        return text
    part = len(text) // PARTS
    return "".join(text[n * part : n * part + int(part * share)] for n in range(PARTS))

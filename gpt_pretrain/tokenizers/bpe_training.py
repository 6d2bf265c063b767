"""Train a byte-level byte-pair encoding on texts. The same texts in any order, on any number of threads, give the same tokens.

The package rustbpe counts the words and merges the pairs. If counts are equal, the ids of a pair decide. The result therefore
does not depend on the order of the texts, or on the order of hash tables.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from tiktoken_ext import openai_public

from gpt_pretrain.errors import UserError
from gpt_pretrain.tokenizers import bpe_worker
from gpt_pretrain.tokenizers.base import END_OF_TEXT
from gpt_pretrain.tokenizers.formats.ranks import CL100K_PATTERN, ranks_to_fields
from gpt_pretrain.tokenizers.vocabulary import VocabularyTokenizer

TRAINED_NAME = "bpe"  # tokenizer=bpe asks for a new vocabulary
AUTOMATIC_NAME = "auto"  # tokenizer=auto means bpe or gpt2, depending on text and model
VOCABULARY_SIZES = (512, 1024, 2048, 4096)  # sizes to choose from for a text
TOKENS_PER_ENTRY = 25  # tokens of text per token of such a vocabulary; the study of budget= had no fewer
PATTERNS = {"cl100k": CL100K_PATTERN, "gpt2": openai_public.r50k_pat_str}
DEFAULT_PATTERN = "cl100k"
TRAINING_RULES = 2  # Increase it when the same texts get other tokens than before.
N_BYTES = 256
# Long runs of the same kind of characters are cut at this length. A merge searches a whole word, and a genome is a single word.
LONGEST_WORD = 256
LONG_RUN = re.compile(rf"(?:\w{{{LONGEST_WORD}}}|[^\w\s]{{{LONGEST_WORD}}}|\s{{{LONGEST_WORD}}})")


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    *,
    label: str = TRAINED_NAME,
    pattern: str = DEFAULT_PATTERN,
    special_tokens: Sequence[str] = (),
) -> VocabularyTokenizer:
    """Train a tokenizer.

    Special tokens in a text separate it; nothing is learned from them. The end of text is always one of them, and the last token.

    Args:
        texts: The texts, of at most a few MB each.
        vocab_size: Number of tokens, with the 256 bytes and the special ones. A short text gives fewer.
        label: The beginning of the tokenizer's name.
        pattern: The way to divide a text into words, a key of PATTERNS. No token reaches across words.
        special_tokens: Further special tokens.

    Raises:
        UserError: If the size is too small, or the training fails.
    """
    return train_bpe_sizes(texts, [vocab_size], label=label, pattern=pattern, special_tokens=special_tokens)[0]


def train_bpe_sizes(
    texts: Iterable[str],
    vocab_sizes: Sequence[int],
    *,
    label: str = TRAINED_NAME,
    pattern: str = DEFAULT_PATTERN,
    special_tokens: Sequence[str] = (),
) -> list[VocabularyTokenizer]:
    """Train tokenizers of several sizes at once. The tokens of a small one are the first tokens of a large one.

    Args:
        vocab_sizes: The size of each tokenizer. The other arguments are the same as in `train_bpe`.

    Raises:
        UserError: If a size is too small, or the training fails.
    """
    specials = [*(token for token in dict.fromkeys(special_tokens) if token != END_OF_TEXT), END_OF_TEXT]
    if (smallest := min(vocab_sizes)) < N_BYTES + len(specials):
        raise UserError(f"vocab_size={smallest} must be at least {N_BYTES + len(specials)}: 256 bytes and the special tokens.")
    n_tokens = max(vocab_sizes) - len(specials)
    learned = list(dict.fromkeys(_learn_tokens(_words_in_reach(texts, specials), n_tokens, PATTERNS[pattern])))
    tokenizers = []
    for size in vocab_sizes:
        ranks = {token: rank for rank, token in enumerate(learned[: size - len(specials)])}
        ids = {token: len(ranks) + number for number, token in enumerate(specials)}
        tokenizers.append(VocabularyTokenizer(label, ranks_to_fields(ranks, ids, PATTERNS[pattern]), END_OF_TEXT))
    return tokenizers


def _words_in_reach(texts: Iterable[str], specials: Sequence[str]) -> Iterator[str]:
    """Yield the texts without special tokens. Cut them where a word would be very long."""
    separator = re.compile("|".join(map(re.escape, sorted(specials, key=len, reverse=True))))
    for text in texts:
        for part in separator.split(text):
            start = 0
            for run in LONG_RUN.finditer(part):
                yield part[start : run.end()]
                start = run.end()
            if start < len(part):
                yield part[start:]


def _worker_command(n_tokens: int, pattern: str) -> list[str]:
    return [sys.executable, "-P", bpe_worker.__file__, str(n_tokens), pattern, str(os.getpid())]


def _learn_tokens(texts: Iterable[str], n_tokens: int, pattern: str) -> list[bytes]:
    """Train in a process of its own, and return the tokens in the order of their ids.

    Raises:
        UserError: If the process fails.
    """
    with subprocess.Popen(
        _worker_command(n_tokens, pattern), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        try:
            with suppress(BrokenPipeError):  # The process has failed and reports the reason.
                for text in texts:
                    bpe_worker.write_frame(process.stdin, text.encode())
                process.stdin.close()
            tokens = list(bpe_worker.read_frames(process.stdout))
            lines = process.stderr.read().decode(errors="replace").strip().splitlines()
            code = process.wait()
        finally:
            process.kill()
            with suppress(OSError):  # the rest cannot be flushed
                process.stdin.close()
    if code in (-signal.SIGINT, -signal.SIGTERM):
        raise KeyboardInterrupt
    if code < 0:
        raise UserError("The training of the vocabulary was killed, probably because memory ran out. Give it less text.")
    if code:
        raise UserError(f"The vocabulary could not be trained: {lines[-1] if lines else f'exit code {code}'}.")
    return tokens

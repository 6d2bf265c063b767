"""Score every token of a text exactly once, and sum the scores.

Shapes: n tokens of the text, K clusters, T context_length, V vocab_size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gpt_pretrain.data.documents import DocumentBoundaries
from gpt_pretrain.data.token_stream import TokenStream
from gpt_pretrain.evaluation.packing import ScoreRequest
from gpt_pretrain.evaluation.scoring import Scorer
from gpt_pretrain.evaluation.windows import scored_windows
from gpt_pretrain.tokenizers.base import Tokenizer, token_byte_lengths

BLOCK = 1 << 20  # Tokens to read at a time.


@dataclass(frozen=True)
class EvaluationText:
    """A text, tokenized with one model's tokenizer.

    Args:
        name: Its name in tables and messages.
        tokens: All tokens. `boundaries` separates the documents.
        boundaries: The way in which the stream separates its documents.
        tokenizer: The tokenizer that made the tokens.
        warnings: Sentences about parts of the text that were changed in reading.
    """

    name: str
    tokens: TokenStream
    boundaries: DocumentBoundaries
    tokenizer: Tokenizer
    warnings: tuple[str, ...] = ()

    def documents(self) -> Iterator[tuple[int, int]]:
        """Yield the start and end of each document in the tokens. A document includes its end-of-text token."""
        begin = 0
        for start in range(0, self.tokens.count, BLOCK):
            block = self.tokens.read(start, min(BLOCK, self.tokens.count - start))
            for position in (start + np.flatnonzero(block == self._eos)).tolist():
                end = position if self.boundaries.eos_first else position + 1
                if end > begin:
                    yield begin, end
                begin = end
        if begin < self.tokens.count:
            yield begin, self.tokens.count

    @property
    def adds_prefix(self) -> bool:
        """True if an end-of-text token is put before each document, so that its first token can be predicted."""
        return self.boundaries.eos_id is not None and not self.boundaries.eos_first

    @property
    def _eos(self) -> int:
        return -1 if self.boundaries.eos_id is None else self.boundaries.eos_id


@dataclass(frozen=True)
class TextScores:
    """The scores of a text.

    Args:
        text: The text.
        losses: Loss of each token in nats, float32, (n,); NaN for a token that is not scored, since no token precedes it.
        is_top: Whether each token is the model's most likely one, bool, (n,).
        document_starts: Position of the first token of each document, (documents,).
        position_losses: Mean loss of the tokens with 1, 2, ... T tokens of context in nats, (T,); NaN if there are none.
    """

    text: EvaluationText
    losses: np.ndarray
    is_top: np.ndarray
    document_starts: np.ndarray
    position_losses: np.ndarray

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """Bytes of text of each token, int64, (n,); all 0 if the tokenizer does not keep the bytes of a text."""
        return self._lookup(token_byte_lengths(self.text.tokenizer))

    @cached_property
    def character_lengths(self) -> np.ndarray:
        """Characters that begin in each token, int64, (n,); all 0 if the tokenizer does not keep the bytes of a text."""
        return self._lookup(token_character_counts(self.text.tokenizer))

    @property
    def n_unscored(self) -> int:
        """Number of tokens that are not scored."""
        return int(np.isnan(self.losses).sum())

    def _lookup(self, table: np.ndarray) -> np.ndarray:
        tokens = self.text.tokens
        blocks = (tokens.read(start, min(BLOCK, tokens.count - start)) for start in range(0, tokens.count, BLOCK))
        return np.concatenate([table[block] for block in blocks])


def score_text(
    scorer: Scorer, text: EvaluationText, *, stride: int | None = None, report: Callable[[int], None] | None = None
) -> TextScores:
    """Score every token of a text exactly once, each document by itself.

    Args:
        stride: Tokens between the ends of two windows. A smaller stride gives each token more context and takes more time. None
            takes the context length, so that windows do not overlap.
        report: Called with the number of tokens scored so far.
    """
    count, context = text.tokens.count, scorer.context_length
    losses = np.full(count, np.nan, dtype=np.float32)
    is_top = np.zeros(count, dtype=bool)
    # A file may state any context length. Only the positions in use take memory.
    positions = min(context, count + 1)
    sums, counts = np.zeros(positions), np.zeros(positions, dtype=np.int64)
    starts: list[int] = []
    pending: deque[tuple[int, int, int]] = deque()  # for each request: start and end in the stream, tokens of context

    def requests() -> Iterator[ScoreRequest]:
        prefix = np.array([text.boundaries.eos_id], dtype=np.int64) if text.adds_prefix else np.zeros(0, dtype=np.int64)
        for begin, end in text.documents():
            starts.append(begin)
            first = begin - len(prefix)  # start of the sequence
            windows = scored_windows(end - first, context_length=context, stride=stride or context)
            for window in windows:
                low, high = first + window.start, first + window.end
                token_ids = text.tokens.read(max(low, begin), high - max(low, begin)).astype(np.int64)
                pending.append((high - window.n_scored, high, high - low - window.n_scored))
                yield ScoreRequest(np.concatenate([prefix, token_ids]) if low < begin else token_ids, window.n_scored)

    done = 0
    for scores in scorer.score(requests()):
        begin, end, before = pending.popleft()
        losses[begin:end], is_top[begin:end] = scores.losses, scores.is_top
        sums[before - 1 : before - 1 + end - begin] += scores.losses
        counts[before - 1 : before - 1 + end - begin] += 1
        done += end - begin
        if report is not None:
            report(done)
    with np.errstate(invalid="ignore"):
        position_losses = sums / counts
    return TextScores(text, losses, is_top, np.array(starts, dtype=np.int64), position_losses)


def token_character_counts(tokenizer: Tokenizer) -> np.ndarray:
    """Return the number of characters that begin in each token, int64, (V,). The end of text counts as 0.

    All numbers are 0 if the tokens of a text do not show its size.
    """
    if not tokenizer.keeps_bytes:
        return np.zeros(tokenizer.vocab_size, dtype=np.int64)
    counts = [
        sum(byte & 0xC0 != 0x80 for byte in tokenizer.token_bytes(token_id)) if token_id != tokenizer.eos_id else 0
        for token_id in range(tokenizer.vocab_size)
    ]
    return np.array(counts, dtype=np.int64)

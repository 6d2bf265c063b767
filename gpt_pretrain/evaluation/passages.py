"""Find the passages and the documents of a text that are hardest and easiest for a model.

Shapes: n tokens of the text.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from gpt_pretrain.evaluation.text_scores import TextScores
from gpt_pretrain.tokenizers.base import decode

PASSAGE = 40  # tokens
LISTED = 5


@dataclass(frozen=True)
class Passage:
    """A part of a text.

    Args:
        text: The text.
        tokens: Number of tokens.
        nats_per_token: Its mean loss.
    """

    text: str
    tokens: int
    nats_per_token: float


def extreme_passages(scores: TextScores) -> tuple[list[Passage], list[Passage]]:
    """Return the passages of equal length with the highest and with the lowest losses, the most extreme first."""
    count = len(scores.losses) // PASSAGE
    spans = [(index * PASSAGE, (index + 1) * PASSAGE) for index in range(count)]
    return _extremes(scores, spans)


def extreme_documents(scores: TextScores) -> tuple[list[Passage], list[Passage]]:
    """Return the beginnings of the documents with the highest and the lowest losses. A text of one document has none."""
    starts = [*scores.document_starts.tolist(), len(scores.losses)]
    spans = list(itertools.pairwise(starts))
    return _extremes(scores, spans) if len(spans) > 1 else ([], [])


def _extremes(scores: TextScores, spans: list[tuple[int, int]]) -> tuple[list[Passage], list[Passage]]:
    if not spans:
        return [], []
    scored = ~np.isnan(scores.losses)
    sums = np.concatenate([[0.0], np.cumsum(np.where(scored, scores.losses, 0), dtype=np.float64)])
    counts = np.concatenate([[0], np.cumsum(scored)])
    begins, ends = (np.array(side) for side in zip(*spans, strict=True))
    tokens = counts[ends] - counts[begins]
    with np.errstate(invalid="ignore"):
        means = (sums[ends] - sums[begins]) / tokens
    order = [index for index in np.argsort(means).tolist() if tokens[index]]
    listed = min(LISTED, max(1, len(order) // 2))
    hardest, easiest = order[::-1][:listed], order[:listed]

    def passages(indices: list[int]) -> list[Passage]:
        return [_passage(scores, spans[index], tokens=int(tokens[index]), mean=float(means[index])) for index in indices]

    return passages(hardest), passages(easiest)


def _passage(scores: TextScores, span: tuple[int, int], *, tokens: int, mean: float) -> Passage:
    begin, end = span
    ids = scores.text.tokens.read(begin, min(end - begin, PASSAGE)).tolist()
    return Passage(decode(scores.text.tokenizer, ids), tokens, mean)

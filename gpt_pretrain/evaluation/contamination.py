"""Find parts of an evaluated text that occur verbatim in the training text of a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from gpt_pretrain.data.token_stream import TokenStream
from gpt_pretrain.evaluation.shared_spans import longest_shared_spans
from gpt_pretrain.evaluation.tasks.task_items import Task
from gpt_pretrain.evaluation.text_scores import EvaluationText
from gpt_pretrain.system.formatting import format_count
from gpt_pretrain.tokenizers.base import Tokenizer
from gpt_pretrain.tokenizers.splitting import encode_whole

Part = TypeVar("Part")

PART = 256  # Tokens of a part, for a text with few documents.
MIN_DOCUMENTS = 20
MAX_TOKENS = 1 << 21  # Tokens to look up of a text or a task. A longer one is looked up in parts spread evenly over it.
MAX_ITEM = 1 << 11  # Tokens to look up of a document or of an item, from its end.
LONG_SPAN = 150  # Bytes of text; shorter spans are often idioms, names, dates or rules of dashes.
SHORTEST_SPAN, MIN_SHORTEST = 50, 8  # Bytes, and tokens, of the shortest span to look for.
MAX_LISTED = 100


@dataclass(frozen=True)
class Overlap:
    """The parts of a text, or items of a task, that occur in the training text of a model.

    Args:
        model: The name of the model.
        name: The name of the text or task.
        unit: The unit that it is divided into: document, part or item.
        spans: For each unit that was looked up, the length of its longest span in the training text, in tokens; 0 if the length
            is below `shortest`.
        bytes_per_token: Mean number of bytes of text per token.
        shortest: Tokens of the shortest span to look for.
    """

    model: str
    name: str
    unit: str
    spans: tuple[int, ...]
    bytes_per_token: float
    shortest: int

    @property
    def longest(self) -> int:
        """The length of the longest span of all, in tokens."""
        return max(self.spans, default=0)

    def warning(self) -> str | None:
        """Return a sentence about long spans, or None if there are none."""
        count = sum(span * self.bytes_per_token >= LONG_SPAN for span in self.spans)
        if not count:
            return None
        share = "shares" if count == 1 else "share"
        found = (
            f"{self.name}: {count:,} of {format_count(len(self.spans), self.unit)} {share} long spans with the training text of"
        )
        return f"{found} {self.model}, of up to {self.longest:,} tokens. Its result says little about text that is new to it."

    def as_json(self) -> dict[str, Any]:
        """Return the numbers for results.json. They include the longest spans by the number of their document, part or item."""
        numbers = {"looked_up": len(self.spans), "shortest_span_tokens": self.shortest, "longest_span_tokens": self.longest}
        order = sorted(range(len(self.spans)), key=lambda index: -self.spans[index])[:MAX_LISTED]
        found = [{self.unit: index, "span_tokens": self.spans[index]} for index in order if self.spans[index]]
        return {"model": self.model, "name": self.name, "unit": self.unit} | numbers | {"found": found}


def text_overlap(model: str, text: EvaluationText, training: TokenStream) -> Overlap:
    """Look up the documents of a text in the training text. If it has few documents, look up parts of it."""
    documents = list(islice(text.documents(), MAX_TOKENS))
    unit = "document" if len(documents) >= MIN_DOCUMENTS else "part"
    if unit == "part":
        documents = [(start, min(start + PART, text.tokens.count)) for start in range(0, text.tokens.count, PART)]
    spans = [(max(begin, end - MAX_ITEM), end) for begin, end in documents]
    kept = _spread(spans, [end - begin for begin, end in spans])
    parts = [text.tokens.read(begin, end - begin) for begin, end in kept]
    return _overlap(model, text.name, unit, parts, text.tokenizer, training)


def task_overlap(model: str, task: Task, tokenizer: Tokenizer, training: TokenStream) -> Overlap:
    """Look up the items of a task in the training text, each with its right answer."""
    texts = [item.contexts[item.label] + item.continuations[item.label] for item in task.items]
    kept = _spread(texts, list(map(len, texts)))
    parts = [np.array(encode_whole(one, tokenizer)[-MAX_ITEM:], dtype=np.int64) for one in kept]
    return _overlap(model, task.name, "item", parts, tokenizer, training)


def _spread(parts: list[Part], sizes: Sequence[int]) -> list[Part]:
    """Return evenly spread parts. If all parts have the same size, the returned ones have at most MAX_TOKENS tokens in all."""
    count = min(len(parts), max(1, MAX_TOKENS * len(parts) // max(1, sum(sizes))))
    indices: list[int] = np.linspace(0, len(parts) - 1, count).astype(int).tolist()
    return [parts[index] for index in indices]


def _overlap(
    model: str, name: str, unit: str, parts: Sequence[np.ndarray], tokenizer: Tokenizer, training: TokenStream
) -> Overlap:
    counts = np.bincount(np.concatenate([np.zeros(0, dtype=np.int64), *(part.astype(np.int64) for part in parts)]))
    n_bytes = sum(int(count) * len(tokenizer.token_bytes(token_id)) for token_id, count in enumerate(counts) if count)
    bytes_per_token = n_bytes / max(1, int(counts.sum()))
    shortest = max(MIN_SHORTEST, math.ceil(SHORTEST_SPAN / max(bytes_per_token, 1.0)))
    spans = longest_shared_spans(parts, training, shortest=shortest)
    return Overlap(model, name, unit, tuple(spans.tolist()), bytes_per_token, shortest)

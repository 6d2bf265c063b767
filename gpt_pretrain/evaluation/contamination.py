"""Find parts of an evaluated text that occur verbatim in the training text of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt_pretrain.data.token_stream import TokenStream
from gpt_pretrain.evaluation.memorization import longest_memorized_span
from gpt_pretrain.evaluation.task_items import Task
from gpt_pretrain.evaluation.text_scores import EvaluationText
from gpt_pretrain.system.formatting import format_count
from gpt_pretrain.tokenizers.base import Tokenizer

PART = 256  # Tokens of a part of the text that are searched for at a time.
SEARCHED = 1 << 25  # Tokens of the training text that may be read for all parts together, which takes some seconds.
MIN_PARTS, MAX_PARTS = 4, 100
LONG_SPAN = 150  # Bytes of text; shorter spans are often idioms, names, dates or rules of dashes.


@dataclass(frozen=True)
class Overlap:
    """The parts of a text, or items of a task, that occur in the training text of a model.

    Args:
        model: The name of the model.
        name: What was searched for.
        unit: What it was divided into: part or item.
        spans: For each part that was searched for, the length of its longest span in the training text, in tokens.
        bytes_per_token: Bytes of text of a token, in the mean over all parts.
    """

    model: str
    name: str
    unit: str
    spans: tuple[int, ...]
    bytes_per_token: float

    @property
    def longest(self) -> int:
        """The longest span of all, in tokens."""
        return max(self.spans, default=0)

    def warning(self) -> str | None:
        """Return a sentence about long spans, or None if there are none."""
        count = sum(span * self.bytes_per_token >= LONG_SPAN for span in self.spans)
        if not count:
            return None
        found = f"{self.name}: {count:,} of {format_count(len(self.spans), self.unit)} share long spans with the training text of"
        return f"{found} {self.model}, of up to {self.longest:,} tokens. Its result says little about text that is new to it."

    def as_json(self) -> dict[str, Any]:
        """Return the numbers for results.json."""
        numbers = {"looked_up": len(self.spans), "longest_span_tokens": self.longest}
        return {"model": self.model, "name": self.name, "unit": self.unit} | numbers


def text_overlap(model: str, text: EvaluationText, training: TokenStream) -> Overlap:
    """Look parts of a text, spread evenly over it, up in the training text."""
    n_parts = min(_n_parts(training), max(1, -(-text.tokens.count // PART)))
    starts = np.linspace(0, max(0, text.tokens.count - PART), n_parts).astype(int).tolist()
    parts = [text.tokens.read(start, min(PART, text.tokens.count - start)).tolist() for start in starts]
    return _overlap(model, text.name, "part", parts, text.tokenizer, training)


def task_overlap(model: str, task: Task, tokenizer: Tokenizer, training: TokenStream) -> Overlap:
    """Look items of a task, spread evenly over it, up in the training text, each with its right answer."""
    indices = np.linspace(0, len(task.items) - 1, min(_n_parts(training), len(task.items))).astype(int).tolist()
    items = [task.items[index] for index in indices]
    texts = [item.contexts[item.label] + item.continuations[item.label] for item in items]
    return _overlap(model, task.name, "item", [tokenizer.encode(one)[-PART:] for one in texts], tokenizer, training)


def _n_parts(training: TokenStream) -> int:
    return max(MIN_PARTS, min(MAX_PARTS, SEARCHED // max(training.count, 1)))


def _overlap(
    model: str, name: str, unit: str, parts: Sequence[Sequence[int]], tokenizer: Tokenizer, training: TokenStream
) -> Overlap:
    n_bytes = sum(len(tokenizer.token_bytes(token_id)) for part in parts for token_id in part)
    spans = tuple(longest_memorized_span(part, training) for part in parts)
    return Overlap(model, name, unit, spans, n_bytes / max(1, sum(map(len, parts))))

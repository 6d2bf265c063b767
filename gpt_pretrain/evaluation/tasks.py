"""Score the items of a task: the choice that a model finds most likely, or whether it continues a text as the author did.

Source: the LM Evaluation Harness, for how a text is divided into tokens, cut and judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.scoring import Scorer, ScoreRequest
from gpt_pretrain.evaluation.statistics import Estimate
from gpt_pretrain.evaluation.task_files import Task, TaskItem
from gpt_pretrain.tokenizers.base import Tokenizer

MAX_CHANCE = 0.05  # Of a difference that is not called noise.


@dataclass(frozen=True)
class TaskResult:
    """The results of one model on a task.

    Args:
        model: The name of the model.
        task: The name of the task.
        correct: For each item, 1 if the choice with the highest log-probability is the right one, or if each token of the
            continuation is the most likely one.
        correct_by_length: The same for the highest log-probability per character of a choice; None without choices.
        perplexity: Of a continuation as a whole, without choices; otherwise None.
        truncated: Number of items that are longer than the context, and are cut on the left.
    """

    model: str
    task: str
    correct: np.ndarray
    correct_by_length: np.ndarray | None
    perplexity: Estimate | None
    truncated: int

    @property
    def accuracy(self) -> Estimate:
        """The share of the items that are answered rightly, by the sum of the log-probabilities."""
        return mean_estimate(self.correct)

    @property
    def accuracy_by_length(self) -> Estimate | None:
        """The share of the items that are answered rightly, by the log-probability per character."""
        return None if self.correct_by_length is None else mean_estimate(self.correct_by_length)

    def as_json(self) -> dict[str, Any]:
        """Return the numbers for results.json, under the names of the LM Evaluation Harness."""
        estimates = {"acc": self.accuracy, "acc_norm": self.accuracy_by_length, "perplexity": self.perplexity}
        numbers: dict[str, Any] = {"model": self.model, "task": self.task, "items": len(self.correct)}
        for name, estimate in estimates.items():
            if estimate is not None:
                numbers[name] = estimate.value
                numbers[f"{name}_stderr"] = estimate.error if math.isfinite(estimate.error) else None
        return numbers | {"truncated": self.truncated}


def score_task(scorer: Scorer, task: Task, tokenizer: Tokenizer, *, report: Callable[[int], None] | None = None) -> TaskResult:
    """Score all items of a task.

    Args:
        report: Called with the number of continuations scored so far.

    Raises:
        UserError: If the tokenizer cannot write a text, or a continuation has no tokens or more than the context holds.
    """
    truncated: set[int] = set()

    def requests() -> Iterator[ScoreRequest]:
        for index, item in enumerate(task.items):
            encoded: dict[str, list[int]] = {}
            for context, continuation in zip(item.contexts, item.continuations, strict=True):
                before, after = encode_pair(context, continuation, tokenizer, encoded=encoded)
                _check_lengths(before, after, scorer.context_length, task=task, item=item)
                token_ids = before + after
                if len(token_ids) > scorer.context_length + 1:
                    truncated.add(index)
                # An array of all tokens would stay in memory as long as a slice of it.
                yield ScoreRequest(np.array(token_ids[-(scorer.context_length + 1) :], dtype=np.int64), len(after))

    sums, greedy = [], []
    for scores in scorer.score(requests()):
        sums.append(-float(scores.losses.sum(dtype=np.float64)))
        greedy.append(bool(scores.is_top.all()))
        if report is not None:
            report(len(sums))
    if not task.has_choices:
        return TaskResult(
            scorer.name, task.name, np.array(greedy, dtype=float), None, _perplexity(np.array(sums)), len(truncated)
        )
    correct, by_length, begin = [], [], 0
    for item in task.items:
        logs = np.array(sums[begin : begin + len(item.continuations)])
        begin += len(item.continuations)
        correct.append(float(logs.argmax() == item.label))
        by_length.append(float((logs / np.array(item.sizes)).argmax() == item.label))
    return TaskResult(scorer.name, task.name, np.array(correct), np.array(by_length), None, len(truncated))


def encode_pair(
    context: str, continuation: str, tokenizer: Tokenizer, *, encoded: dict[str, list[int]] | None = None
) -> tuple[list[int], list[int]]:
    """Return the token ids of a context and of its continuation, divided where the context's own tokens end.

    Blanks at the end of the context go to the continuation. An empty context becomes the end of text, if there is one.

    Args:
        encoded: The token ids of contexts that are already encoded; this one's are added.
    """
    encoded = {} if encoded is None else encoded
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    if not kept:
        return [] if tokenizer.eos_id is None else [tokenizer.eos_id], tokenizer.encode(continuation)
    if kept not in encoded:
        encoded[kept] = tokenizer.encode(kept)
    before = encoded[kept]
    return before, tokenizer.encode(kept + continuation)[len(before) :]


def mean_estimate(values: np.ndarray) -> Estimate:
    """Return the mean of independent values with its standard error, which is NaN for a single one."""
    count = len(values)
    return Estimate(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan)


def compare_accuracies(first: TaskResult, second: TaskResult) -> tuple[Estimate, bool]:
    """Return how much more often the first model is right, item by item, and whether that is noise at 95 % confidence.

    An exact sign test over the items on which the models differ decides (McNemar 1947); it is valid for few items, too.
    The error is for display; it is NaN for a single item, and 0 if the models differ on none or in the same way on all of them.
    """
    if len(first.correct) != len(second.correct):
        raise ValueError(f"{len(first.correct)} and {len(second.correct)} items cannot be compared")
    differences = first.correct - second.correct
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    return mean_estimate(differences), sign_test(wins, losses) > MAX_CHANCE


def sign_test(wins: int, losses: int) -> float:
    """Return the probability that tosses of a fair coin are at least as uneven, in either direction."""
    count = wins + losses
    log_total = math.lgamma(count + 1) - count * math.log(2)
    tail = (math.exp(log_total - math.lgamma(k + 1) - math.lgamma(count - k + 1)) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * math.fsum(tail))


def _perplexity(sums: np.ndarray) -> Estimate:
    """Return the exponential of the mean loss of a continuation, with the standard error that follows from the mean's."""
    loss = mean_estimate(-sums)
    value = math.exp(min(loss.value, 700.0))
    return Estimate(value, value * loss.error)


def _check_lengths(before: list[int], after: list[int], context_length: int, *, task: Task, item: TaskItem) -> None:
    where = f"{task.name}, line {item.line}"
    if not after:
        raise UserError(f"{where}: the tokenizer makes no tokens of the continuation, so it has no probability.")
    if not before:
        raise UserError(f"{where}: the context is empty, and the tokenizer has no end-of-text token to begin with.")
    if len(after) > context_length:
        raise UserError(f"{where}: the continuation has {len(after):,} tokens, but the context holds {context_length:,}.")

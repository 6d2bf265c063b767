"""Score the items of a task: find a model's most likely choice, or check that the model continues a text like its author.

Source: the LM Evaluation Harness for the tokenization, the cutting and the judging of texts; nanochat for tasks of the CORE set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.packing import ScoreRequest, common_length
from gpt_pretrain.evaluation.scoring import Scorer
from gpt_pretrain.evaluation.tasks.task_items import SEPARATOR, CoreRule, Task, TaskItem
from gpt_pretrain.evaluation.tasks.task_results import TaskResult
from gpt_pretrain.tokenizers.base import Tokenizer
from gpt_pretrain.tokenizers.splitting import encode_whole
from gpt_pretrain.tokenizers.unknown import unknown_parts

MAX_EXAMPLE = 80  # Characters of an example of unknown text.


def score_task(scorer: Scorer, task: Task, tokenizer: Tokenizer, *, report: Callable[[int], None] | None = None) -> TaskResult:
    """Score all items of a task.

    Args:
        report: Called with the number of continuations scored so far.

    Raises:
        UserError: If the tokenizer cannot encode a text, or a continuation has no tokens or more than the context holds.
    """
    encoder = TaskEncoder(task, tokenizer, scorer.context_length)
    correct: list[float] = []
    by_length: list[float] = []
    losses: list[float] = []
    done = 0
    for item, scores in zip(task.items, scorer.score_groups(encoder.requests()), strict=True):
        sums = np.array([one.losses.sum(dtype=np.float64) for one in scores])
        if not task.has_choices:
            correct.append(float(scores[0].is_top.all()))
            losses.append(float(sums[0]))
        elif task.core is not None:
            correct.append(float(np.array([one.losses.mean(dtype=np.float64) for one in scores]).argmin() == item.label))
        else:
            correct.append(float(sums.argmin() == item.label))
            by_length.append(float((sums / np.array(item.sizes)).argmin() == item.label))
        done += len(scores)
        if report is not None:
            report(done)
    return TaskResult(
        scorer.name,
        task.name,
        np.array(correct),
        np.array(by_length) if by_length else None,
        np.array(losses) if losses and task.core is None else None,
        truncated=encoder.truncated,
        unknown=encoder.unknown,
        unknown_example=encoder.unknown_example,
        n_shots=task.n_shots,
        baseline=None if task.core is None else task.core.baseline,
    )


def check_characters(task: Task, tokenizer: Tokenizer) -> None:
    """Check that a tokenizer has all characters of a task, before anything is scored.

    Raises:
        UserError: If it lacks one, and has no token for unknown characters.
    """
    # The examples of a CORE task are items of the task.
    shown = {example for examples in task.examples for example in examples} if task.core is None else ()
    texts = {text for item in (*task.items, *shown) for text in (*item.contexts, *item.continuations)}
    characters = set[str]().union(*texts, SEPARATOR if task.n_shots else "")
    try:
        encode_whole("".join(sorted(characters)), tokenizer)
    except UserError as error:
        raise UserError([f"{task.name}: {problem}" for problem in error.problems]) from error


class TaskEncoder:
    """Turn the items of a task into requests, and count the items that have a problem.

    Attributes:
        truncated: Number of items that are longer than the context and are cut on the left.
        unknown: Number of items with text that the vocabulary lacks.
        unknown_example: A part of such text.
    """

    def __init__(self, task: Task, tokenizer: Tokenizer, context_length: int) -> None:
        self.task, self.tokenizer, self.context_length = task, tokenizer, context_length
        self.truncated, self.unknown, self.unknown_example = 0, 0, ""

    def requests(self) -> Iterator[list[ScoreRequest]]:
        """Yield a request for each choice of each item."""
        # In nanochat, a sequence is at most as long as the context. The harness allows one more, which is only predicted.
        most = self.context_length + (self.task.core is None)
        for item in self.task.prompts():
            sequences = self._encode(item)
            for token_ids, n_scored in sequences:
                _check_lengths(len(token_ids) - n_scored, n_scored, most - 1, task=self.task, item=item)
            self.truncated += any(len(token_ids) > most for token_ids, _ in sequences)
            self._count_unknown(item, sequences)
            # A slice of an array would keep all tokens in memory.
            yield [ScoreRequest(np.array(ids[-most:], dtype=np.int64), n_scored) for ids, n_scored in sequences]

    def _encode(self, item: TaskItem) -> list[tuple[list[int], int]]:
        """Return the tokens of each choice with its context, and the number of them to score."""
        if self.task.core is not None:
            return encode_core_item(item, self.task.core, self.tokenizer)
        encoded: dict[str, list[int]] = {}
        pairs = [
            encode_pair(context, continuation, self.tokenizer, encoded=encoded)
            for context, continuation in zip(item.contexts, item.continuations, strict=True)
        ]
        return [(before + after, len(after)) for before, after in pairs]

    def _count_unknown(self, item: TaskItem, sequences: Sequence[tuple[list[int], int]]) -> None:
        unknown_id = self.tokenizer.unknown_id
        if unknown_id is None or not any(unknown_id in token_ids for token_ids, _ in sequences):
            return
        self.unknown += 1
        if not self.unknown_example:
            text = "\n".join((*item.contexts, *item.continuations))
            self.unknown_example = next(iter(unknown_parts(text, self.tokenizer)), "")[:MAX_EXAMPLE]


def encode_pair(
    context: str, continuation: str, tokenizer: Tokenizer, *, encoded: dict[str, list[int]] | None = None
) -> tuple[list[int], list[int]]:
    """Return the token ids of a context and of its continuation. Both are encoded together and then divided.

    Blanks at the end of the context go to the continuation. An empty context becomes the end of text, if there is one.

    Args:
        encoded: The token ids of already encoded contexts. This context is added.
    """
    encoded = {} if encoded is None else encoded
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    if not kept:
        return [] if tokenizer.eos_id is None else [tokenizer.eos_id], encode_whole(continuation, tokenizer)
    if kept not in encoded:
        encoded[kept] = encode_whole(kept, tokenizer)
    before = encoded[kept]
    return before, encode_whole(kept + continuation, tokenizer)[len(before) :]


def encode_core_item(item: TaskItem, rule: CoreRule, tokenizer: Tokenizer) -> list[tuple[list[int], int]]:
    """Return the tokens of each choice with its context, and the number of tokens to score at the end.

    For multiple choice, these are the tokens in which the choices differ. For a schema, they are the common tokens at the end of
    all choices. Without choices, they are the tokens after the context. At least one token is scored, even if one choice's tokens
    are the beginning of another's.
    """
    begin = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    pairs = zip(item.contexts, item.continuations, strict=True)
    sequences = [begin + encode_whole(context + continuation, tokenizer) for context, continuation in pairs]
    shortest = min(map(len, sequences))
    if rule.kind == "schema":
        n_common = common_length([np.array(ids[::-1]) for ids in sequences])
        return [(ids, max(1, min(n_common, len(ids) - 1))) for ids in sequences]
    compared = (
        sequences if rule.kind == "multiple_choice" else [*sequences, begin + encode_whole(item.contexts[0].strip(), tokenizer)]
    )
    n_common = min(common_length([np.array(ids) for ids in compared]), shortest - 1)
    return [(ids, len(ids) - n_common) for ids in sequences]


def _check_lengths(n_before: int, n_after: int, most: int, *, task: Task, item: TaskItem) -> None:
    where = f"{task.name}, line {item.line}"
    if not n_after:
        raise UserError(f"{where}: the tokenizer makes no tokens of the continuation, so it has no probability.")
    if n_before < 1:
        raise UserError(f"{where}: the context is empty, and the tokenizer has no end-of-text token to begin with.")
    if n_after > most:
        raise UserError(f"{where}: the continuation has {n_after:,} tokens, but the context holds {most:,}.")

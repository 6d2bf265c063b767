"""Measure one model: its losses on a text, its answers to tasks, and the parts of them that occur in its training text."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from gpt_pretrain.checkpoints.weights import Weights
from gpt_pretrain.config.inference_schema import EvaluateSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.alternatives import find_alternatives
from gpt_pretrain.evaluation.contamination import Overlap, task_overlap, text_overlap
from gpt_pretrain.evaluation.generated_text import find_training_tokens
from gpt_pretrain.evaluation.page import MAX_PAGE_TOKENS, PageModel
from gpt_pretrain.evaluation.progress import scoring_progress
from gpt_pretrain.evaluation.results import TextResult, summarize
from gpt_pretrain.evaluation.scoring import Scorer, pick_scoring_precision
from gpt_pretrain.evaluation.tasks.task_items import Task
from gpt_pretrain.evaluation.tasks.task_results import TaskResult
from gpt_pretrain.evaluation.tasks.task_scoring import check_characters, score_task
from gpt_pretrain.evaluation.text_scores import EvaluationText, score_text
from gpt_pretrain.evaluation.texts import TextSource
from gpt_pretrain.evaluation.unlikely_text import unlikely_loss
from gpt_pretrain.system.devices import pick_device
from gpt_pretrain.tokenizers.base import Tokenizer

MIN_TOKENS = 100  # A loss on fewer says nothing about the weights.

log = logging.getLogger(__name__)


@dataclass
class EvaluatedModel:
    """The results of one model.

    Args:
        texts: Its results on the text, by stride.
        tasks: Its results on the tasks.
        overlaps: The parts of the text and of the tasks that occur in its training text.
        page: Its part of the page.
        warnings: Sentences about misleading results.
    """

    texts: list[TextResult] = field(default_factory=list)
    tasks: list[TaskResult] = field(default_factory=list)
    overlaps: list[Overlap] = field(default_factory=list)
    page: PageModel | None = None
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PreparedModel:
    """Weights that are not loaded yet, with the text to score.

    Args:
        weights: The weights.
        tokenizer: Their tokenizer.
        text: The tokenized text; None if only tasks are scored.
        strides: Tokens between the ends of two windows. The text is scored once with each of these strides.
    """

    weights: Weights
    tokenizer: Tokenizer
    text: EvaluationText | None
    strides: list[int]


def prepare_models(
    models: Sequence[Weights], source: TextSource | None, tasks: Sequence[Task], settings: EvaluateSettings
) -> list[PreparedModel]:
    """Tokenize the text for each model, so that problems are found before anything is scored.

    Raises:
        UserError: If a model is named twice, a tokenizer is not found or cannot encode the text or a task, or the stride exceeds
            a context. It lists all problems together.
    """
    names = [weights.name for weights in models]
    problems = [f"models: {name} is named twice. Name each model once." for name in names if names.count(name) > 1]
    prepared = []
    for weights in models:
        try:
            tokenizer = weights.build_tokenizer(settings.tokenizer)
            text = None if source is None else source.tokenize(tokenizer, max_bytes=settings.max_bytes)
            for task in tasks:
                check_characters(task, tokenizer)
            prepared.append(PreparedModel(weights, tokenizer, text, _strides(weights, settings.stride)))
        except UserError as error:
            problems += [f"{weights.name}: {problem}" if len(models) > 1 else problem for problem in error.problems]
    if problems:
        raise UserError(dict.fromkeys(problems))
    return prepared


def evaluate_model(prepared: PreparedModel, tasks: Sequence[Task], settings: EvaluateSettings) -> EvaluatedModel:
    """Score a text and tasks with one model.

    Raises:
        UserError: If the weights cannot be used, or the tokenizer cannot encode a task.
    """
    weights, tokenizer, text = prepared.weights, prepared.tokenizer, prepared.text
    model = weights.build(device=pick_device(settings.device))
    precision, reason = pick_scoring_precision(settings.precision, model)
    log.info("%s: precision %s: %s", weights.name, precision, reason)
    scorer = Scorer(model, name=weights.name, precision=precision, batch_tokens=settings.batch_tokens)
    evaluated = EvaluatedModel(warnings=[] if text is None else list(text.warnings))
    for task in tasks:
        evaluated.tasks.append(_run_task(scorer, task, tokenizer))
        evaluated.warnings += evaluated.tasks[-1].warnings(scorer.context_length)
    if (training := find_training_tokens(weights.content, tokenizer)) is not None:
        evaluated.overlaps += [] if text is None else [text_overlap(weights.name, text, training)]
        evaluated.overlaps += [task_overlap(weights.name, task, tokenizer, training) for task in tasks]
        evaluated.warnings += filter(None, [overlap.warning() for overlap in evaluated.overlaps])
    for stride in prepared.strides:
        if text is None:
            break
        label = f"{weights.name}, stride {stride}"
        with scoring_progress(label, total=text.tokens.count, unit="tokens") as report:
            scores = score_text(scorer, text, stride=stride, report=report)
        result = summarize(weights.name, scores, stride=stride, context_length=scorer.context_length)
        evaluated.texts.append(result)
        if evaluated.page is None:
            shown = MAX_PAGE_TOKENS // max(1, len(settings.models))
            evaluated.warnings += _misfit(weights, result, named=settings.tokenizer is not None)
            evaluated.page = PageModel(result, scores, find_alternatives(scorer, text, max_tokens=shown))
    return evaluated


def _run_task(scorer: Scorer, task: Task, tokenizer: Tokenizer) -> TaskResult:
    total = sum(len(item.continuations) for item in task.items)
    with scoring_progress(f"{scorer.name}, {task.name}", total=total, unit="continuations") as report:
        return score_task(scorer, task, tokenizer, report=report)


def _misfit(weights: Weights, result: TextResult, *, named: bool) -> list[str]:
    """Return a sentence if the loss shows that the weights do not fit the text, otherwise None.

    Args:
        named: Whether the user has named the tokenizer.
    """
    if result.tokens < MIN_TOKENS:
        return []
    own, loss = not named and weights.own_tokenizer is not None, result.nats_per_token.value
    text, size = f"{weights.name}: the text", weights.config.vocab_size
    sentence = unlikely_loss(text, loss, vocab_size=size, of_own_vocabulary=own)
    return [] if sentence is None else [sentence]


def _strides(weights: Weights, typed: int | None) -> list[int]:
    """Return the strides to score with: the one without overlap, and the typed one.

    Raises:
        UserError: If the typed stride exceeds the context.
    """
    context = weights.config.context_length
    if typed is not None and typed > context:
        raise UserError(f"stride={typed} exceeds the context of {weights.name}, which is {context} tokens.")
    return [context] if typed in (None, context) else [context, typed]

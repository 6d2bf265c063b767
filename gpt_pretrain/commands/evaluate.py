"""The work of evaluate.py: from its composed config to a table of results."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from gpt_pretrain.commands.failures import report_failures
from gpt_pretrain.commands.job import overridden_keys
from gpt_pretrain.config.conversion import to_settings
from gpt_pretrain.config.schema import EvaluateSettings
from gpt_pretrain.config.validation import evaluate_problems
from gpt_pretrain.errors import UserError

if TYPE_CHECKING:
    from gpt_pretrain.checkpoints.pretrained import Weights
    from gpt_pretrain.evaluation.page import PageModel
    from gpt_pretrain.evaluation.results import TextResult
    from gpt_pretrain.evaluation.scoring import Scorer
    from gpt_pretrain.evaluation.task_files import Task
    from gpt_pretrain.evaluation.tasks import TaskResult
    from gpt_pretrain.evaluation.texts import TextSource
    from gpt_pretrain.tokenizers.base import Tokenizer

RESULTS, PAGE = "results.json", "evaluation.html"
# Settings of the text that only matter in a training.
UNUSED = {f"data.{name}" for name in ("batch_size", "train_ratio", "stride", "shift_windows", "num_workers", "val_tokens")} | {
    "data.respect_documents"
}

log = logging.getLogger(__name__)


@dataclass
class EvaluatedModel:
    """The results of one model.

    Args:
        texts: Its results on the text, by stride.
        tasks: Its results on the tasks.
        page: What the page shows of it.
        misfit: A sentence about a loss that only weights have which do not fit the text; None if they fit.
    """

    texts: list[TextResult]
    tasks: list[TaskResult]
    page: PageModel | None = None
    misfit: str | None = None


def evaluate_models(config: DictConfig) -> None:
    """Print how well models predict a text, and write the numbers to results.json.

    Raises:
        SystemExit: If the command fails.
    """
    with report_failures():
        settings = to_settings(config, EvaluateSettings)
        if problems := evaluate_problems(settings):
            raise UserError(problems)
        for name in sorted(UNUSED & overridden_keys()):
            remedy = " Overlapping windows are set with stride=." if name == "data.stride" else ""
            log.warning("%s has no effect here, since it only matters in a training.%s", name, remedy)
        _evaluate(settings)


def _evaluate(settings: EvaluateSettings) -> None:
    from gpt_pretrain.checkpoints.checkpoint_file import first_readable
    from gpt_pretrain.checkpoints.pretrained import open_weights
    from gpt_pretrain.evaluation.task_files import find_tasks
    from gpt_pretrain.evaluation.texts import typed_source, validation_source
    from gpt_pretrain.runs.folder import find_checkpoints
    from gpt_pretrain.system.devices import keep_freed_memory

    keep_freed_memory()
    # Tasks and texts that cannot be used are refused before weights are loaded.
    tasks = [] if settings.tasks.path is None else find_tasks(settings.tasks.path, limit=settings.tasks.limit)
    source = typed_source(settings.data)
    if settings.models or settings.pretrained is not None:
        models = [open_weights(name, n_heads=settings.n_heads) for name in settings.models or [str(settings.pretrained)]]
    else:
        models = [first_readable(find_checkpoints(settings.checkpoint), open_weights)]
    if source is None and not tasks:
        source = validation_source(models)
    evaluated = [_evaluate_model(weights, source, tasks, settings) for weights in models]
    _show_results(evaluated, source, folder=Path(settings.run_dir))


def _evaluate_model(
    weights: Weights, source: TextSource | None, tasks: Sequence[Task], settings: EvaluateSettings
) -> EvaluatedModel:
    """Score a text and tasks with one model."""
    from gpt_pretrain.evaluation.alternatives import find_alternatives
    from gpt_pretrain.evaluation.page import MAX_PAGE_TOKENS, PageModel
    from gpt_pretrain.evaluation.progress import scoring_progress
    from gpt_pretrain.evaluation.results import summarize
    from gpt_pretrain.evaluation.scoring import Scorer, pick_scoring_precision
    from gpt_pretrain.evaluation.text_scores import score_text
    from gpt_pretrain.evaluation.unlikely_text import unlikely_loss
    from gpt_pretrain.system.devices import pick_device

    tokenizer = weights.build_tokenizer(settings.tokenizer)
    text = None if source is None else source.tokenize(tokenizer, max_bytes=settings.max_bytes)
    strides = _strides(weights, settings.stride)
    model = weights.build(device=pick_device(settings.device))
    precision, reason = pick_scoring_precision(settings.precision, model)
    log.info("%s: precision %s: %s", weights.name, precision, reason)
    scorer = Scorer(model, name=weights.name, precision=precision, batch_tokens=settings.batch_tokens)
    evaluated = EvaluatedModel([], [_run_task(scorer, task, tokenizer) for task in tasks])
    for stride in strides if text is not None else []:
        assert text is not None
        label = f"{weights.name}, stride {stride}"
        with scoring_progress(label, total=text.tokens.count, unit="tokens") as report:
            scores = score_text(scorer, text, stride=stride, report=report)
        result = summarize(weights.name, scores, stride=stride, context_length=scorer.context_length)
        evaluated.texts.append(result)
        if evaluated.page is None:
            shown = MAX_PAGE_TOKENS // max(1, len(settings.models))
            own = settings.tokenizer is None and weights.own_tokenizer is not None
            evaluated.misfit = unlikely_loss(
                f"{weights.name}: the text",
                result.nats_per_token.value,
                vocab_size=weights.config.vocab_size,
                of_own_vocabulary=own,
            )
            evaluated.page = PageModel(result, scores, find_alternatives(scorer, text, max_tokens=shown))
    return evaluated


def _run_task(scorer: Scorer, task: Task, tokenizer: Tokenizer) -> TaskResult:
    from gpt_pretrain.evaluation.progress import scoring_progress
    from gpt_pretrain.evaluation.tasks import score_task

    total = sum(len(item.continuations) for item in task.items)
    with scoring_progress(f"{scorer.name}, {task.name}", total=total, unit="continuations") as report:
        result = score_task(scorer, task, tokenizer, report=report)
    if result.truncated:
        log.warning(
            "%s: %s of %s items are longer than the %s tokens of context of %s. They are cut at their beginning.",
            task.name,
            f"{result.truncated:,}",
            f"{len(task.items):,}",
            f"{scorer.context_length:,}",
            scorer.name,
        )
    return result


def _strides(weights: Weights, typed: int | None) -> list[int]:
    """Return the strides to score with: windows that do not overlap, and also the typed one.

    Raises:
        UserError: If the typed one exceeds the context.
    """
    context = weights.config.context_length
    if typed is not None and typed > context:
        raise UserError(f"stride={typed} exceeds the context of {weights.name}, which is {context} tokens.")
    return [context] if typed in (None, context) else [context, typed]


def _show_results(evaluated: Sequence[EvaluatedModel], source: TextSource | None, *, folder: Path) -> None:
    """Print tables and comparisons, and write results.json and the page."""
    from gpt_pretrain.evaluation.page import render_evaluation_page
    from gpt_pretrain.evaluation.results import comparisons, result_rows, task_comparisons, task_rows
    from gpt_pretrain.system.files import write_json, write_text
    from gpt_pretrain.system.tables import format_table
    from gpt_pretrain.system.terminal import escape_line, print_escaped

    texts = [result for one in evaluated for result in one.texts]
    tasks = [result for one in evaluated for result in one.tasks]
    content: dict[str, Any] = {}
    if source is not None:
        sentences = []
        for stride in sorted({result.stride for result in texts}, reverse=True):
            same = [result for result in texts if result.stride == stride]
            sentences += comparisons(same) if len(same) > 1 else []
        content |= {"text": source.name, "models": [result.as_json() for result in texts]}
        print_escaped(f"{source.name}:")
        print(format_table(result_rows(texts)))
        for misfit in filter(None, [one.misfit for one in evaluated]):
            log.warning("%s", escape_line(misfit))
        for sentence in sentences:
            print_escaped(sentence)
        pages = [one.page for one in evaluated if one.page is not None]
        page = render_evaluation_page(pages, text_name=source.name, rows=result_rows(texts), sentences=sentences)
        write_text(folder / PAGE, page)
    if tasks:
        content["tasks"] = [result.as_json() for result in tasks]
        print(format_table(task_rows(tasks)))
        for sentence in task_comparisons(tasks):
            print_escaped(sentence)
    write_json(folder / RESULTS, content)
    print_escaped(f"Results: {folder / RESULTS}")
    if source is not None:
        print_escaped(f"Page: {folder / PAGE}")

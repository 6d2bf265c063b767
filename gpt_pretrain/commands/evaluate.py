"""The work of evaluate.py: from its composed config to a table of results."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from gpt_pretrain.checkpoints.serialization.checksum import check_early
from gpt_pretrain.commands.process.failures import report_failures
from gpt_pretrain.commands.process.job import overridden_keys
from gpt_pretrain.config.conversion import to_settings
from gpt_pretrain.config.inference_rules import evaluate_problems
from gpt_pretrain.config.inference_schema import EvaluateSettings, weight_names
from gpt_pretrain.config.secrets import settings_without_secrets
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.folder import WRITTEN_BY_EVALUATIONS
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.formatting import format_count
from gpt_pretrain.system.loading import loading_libraries

if TYPE_CHECKING:
    from gpt_pretrain.evaluation.evaluated_model import EvaluatedModel
    from gpt_pretrain.evaluation.texts import TextSource

RESULTS, PAGE = WRITTEN_BY_EVALUATIONS
# Settings of the text that only affect training.
UNUSED = {f"data.{name}" for name in ("batch_size", "train_ratio", "stride", "shift_windows", "num_workers", "val_tokens")} | {
    "data.respect_documents"
}

log = logging.getLogger(__name__)


def evaluate_models(config: DictConfig) -> None:
    """Score models on a text and on tasks, print the results, and write the numbers to results.json.

    Raises:
        SystemExit: If the command fails.
    """
    with report_failures():
        settings = to_settings(config, EvaluateSettings)
        if problems := evaluate_problems(settings):
            raise UserError(problems)
        for name in sorted(UNUSED & overridden_keys()):
            remedy = " Overlapping windows are set with stride=." if name == "data.stride" else ""
            log.warning("%s has no effect here, since it only affects training.%s", name, remedy)
        if settings.n_heads is not None and not settings.models and settings.pretrained is None:
            log.warning("n_heads=%s has no effect, since a checkpoint names its heads.", settings.n_heads)
        _evaluate(settings)


def _evaluate(settings: EvaluateSettings) -> None:
    check_early((weight_names(settings) or [settings.checkpoint])[0])
    with loading_libraries():
        from gpt_pretrain.commands.named_weights import open_named_weights
        from gpt_pretrain.evaluation.evaluated_model import evaluate_model, prepare_models
        from gpt_pretrain.evaluation.tasks.task_sources import load_tasks
        from gpt_pretrain.evaluation.texts import typed_source, validation_source
        from gpt_pretrain.system.devices import prepare_computing
        from gpt_pretrain.system.terminal import print_escaped

    prepare_computing()
    # Unusable tasks and texts are refused before weights are loaded.
    tasks = load_tasks(settings.tasks)
    source = typed_source(settings.data)
    models = open_named_weights(settings)
    if source is None and not tasks:
        source = validation_source(models)
    _warn_of_unused(settings, has_text=source is not None, has_tasks=bool(tasks))
    evaluated: list[EvaluatedModel] = []
    problems: list[str] = []
    prepared = prepare_models(models, source, tasks, settings)
    try:
        for one in prepared:
            try:
                evaluated.append(evaluate_model(one, tasks, settings))
            except UserError as error:  # The other models still have results.
                problems += [problem for problem in error.problems if problem not in problems]
    except KeyboardInterrupt:
        print_escaped(_describe_interruption(len(evaluated), len(prepared)), file=sys.stderr)
        if evaluated:
            _write_results(evaluated, source, settings)
        raise
    if evaluated:
        _write_results(evaluated, source, settings)
    if problems:
        raise UserError(problems)


def _warn_of_unused(settings: EvaluateSettings, *, has_text: bool, has_tasks: bool) -> None:
    """Warn of settings for a text without a text, and of settings for tasks without tasks."""
    of_text = {"stride": settings.stride, "max_bytes": settings.max_bytes}
    of_tasks = {"tasks.limit": settings.tasks.limit, "tasks.n_shots": settings.tasks.n_shots}
    for is_used, values, needed in (
        (has_text, of_text, "only tasks are scored. Add the text: data.path=FILE"),
        (has_tasks, of_tasks, "there are no tasks. Add them: tasks.path=FILE or FOLDER, or tasks.names=[...]"),
    ):
        for name, value in values.items():
            if value is not None and not is_used:
                log.warning("%s=%s has no effect, since %s", name, value, needed)


def _describe_interruption(done: int, total: int) -> str:
    if not done:
        return "Interrupted. No model was evaluated completely, so there are no results."
    return f"Interrupted. {done} of {format_count(total, 'model')} were evaluated completely; the results cover only those."


def _write_results(evaluated: Sequence[EvaluatedModel], source: TextSource | None, settings: EvaluateSettings) -> None:
    try:
        _show_results(evaluated, source, settings)
    except OSError as error:
        raise UserError(f"The results cannot be written to {settings.run_dir}: {error.strerror or error}.") from error


def _show_results(evaluated: Sequence[EvaluatedModel], source: TextSource | None, settings: EvaluateSettings) -> None:
    """Print tables and comparisons, and write results.json and the page."""
    from gpt_pretrain.evaluation.tasks.task_results import core_results
    from gpt_pretrain.evaluation.tasks.task_tables import task_comparisons, task_rows
    from gpt_pretrain.system.files import write_json
    from gpt_pretrain.system.tables import format_table
    from gpt_pretrain.system.terminal import print_escaped

    tasks = [result for one in evaluated for result in one.tasks]
    warnings = list(dict.fromkeys(warning for one in evaluated for warning in one.warnings))
    folder = user_path(settings.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "settings": settings_without_secrets(dataclasses.asdict(settings)),
        "comparisons": task_comparisons(tasks),
    }
    if source is not None:
        found = _show_text(evaluated, source, warnings, page=folder / PAGE)
        content |= found | {"comparisons": found["comparisons"] + content["comparisons"]}
    if tasks:
        content["tasks"] = [result.as_json() for result in tasks]
        content["core"] = [result.as_json() for result in core_results(tasks)]
        print(format_table(task_rows(tasks)))
        for sentence in task_comparisons(tasks):
            print_escaped(sentence)
    content["warnings"] = warnings
    content["training_text"] = [overlap.as_json() for one in evaluated for overlap in one.overlaps]
    for warning in warnings:
        log.warning("%s", warning)
    write_json(folder / RESULTS, content)
    print_escaped(f"Results: {folder / RESULTS}")
    if source is not None:
        print_escaped(f"Page: {folder / PAGE}")


def _show_text(evaluated: Sequence[EvaluatedModel], source: TextSource, warnings: Sequence[str], *, page: Path) -> dict[str, Any]:
    """Print the losses of the models on the text, write the page, and return the fields of results.json about the text."""
    from gpt_pretrain.evaluation.page import render_evaluation_page
    from gpt_pretrain.evaluation.results import comparisons, differences, result_rows
    from gpt_pretrain.system.files import write_text
    from gpt_pretrain.system.tables import format_table
    from gpt_pretrain.system.terminal import print_escaped

    results = [result for one in evaluated for result in one.texts]
    rows, sentences = result_rows(results), comparisons(results)
    print_escaped(f"{source.name}:")
    print(format_table(rows))
    for sentence in sentences:
        print_escaped(sentence)
    pages = [one.page for one in evaluated if one.page is not None]
    write_text(page, render_evaluation_page(pages, text_name=source.name, rows=rows, sentences=sentences, warnings=warnings))
    return {
        "comparisons": sentences,
        "text": source.name,
        "models": [result.as_json() for result in results],
        "differences": differences(results),
    }

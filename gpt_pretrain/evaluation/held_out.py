"""Read and score the held-out texts and tasks of a run while it trains."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import PurePath

from gpt_pretrain.config.inference_schema import TaskSettings
from gpt_pretrain.config.schema import DataSettings, HeldOutSettings
from gpt_pretrain.data.token_stream import TokenStream
from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.contamination import task_overlap, text_overlap
from gpt_pretrain.evaluation.results import summarize
from gpt_pretrain.evaluation.scoring import Scorer
from gpt_pretrain.evaluation.statistics import Estimate
from gpt_pretrain.evaluation.tasks.task_items import Task
from gpt_pretrain.evaluation.tasks.task_results import TaskResult, core_results
from gpt_pretrain.evaluation.tasks.task_scoring import TaskEncoder, check_characters, score_task
from gpt_pretrain.evaluation.tasks.task_sources import load_tasks
from gpt_pretrain.evaluation.text_scores import EvaluationText, score_text
from gpt_pretrain.evaluation.texts import typed_source
from gpt_pretrain.runs.metrics_rows import EVALUATED
from gpt_pretrain.tokenizers.base import Tokenizer

THIS_RUN = "this run"  # in messages
CORE = "core"  # the mean of the centered accuracies of that set
MAX_NAME = 40  # characters
# The settings of evaluate.py as messages name them, and their names here.
RENAMED = {
    r"data\.path=FILE(, DIRECTORY or GLOB)?": "evaluation.texts=[FILE]",
    r"data\.path=": "evaluation.texts=",
    r"tasks\.path=": "evaluation.tasks=",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOutSet:
    """Texts and tasks that are read, tokenized and checked.

    Args:
        texts: The texts, by a short name.
        tasks: The tasks, by a short name.
        tokenizer: The tokenizer of the model.
        tokens: Tokens that the model reads in one evaluation.
    """

    texts: dict[str, EvaluationText]
    tasks: dict[str, Task]
    tokenizer: Tokenizer
    tokens: int

    def metric_names(self, *, averages: bool) -> list[str]:
        """Return the names of all metrics of an evaluation.

        Args:
            averages: Whether a moving average of the weights is also scored.
        """
        of_text = ["loss", *(["bits_per_byte"] if self.tokenizer.keeps_bytes else [])]
        keys = [(name, key) for name in self.texts for key in of_text]
        for name, task in self.tasks.items():
            second = "centered" if task.core is not None else "accuracy_by_length" if task.has_choices else "perplexity"
            keys += [(name, "accuracy"), (name, second)]
        keys += [(CORE, CORE)] if any(task.core is not None for task in self.tasks.values()) else []
        return [metric_name(*key, average=average) for average in (False, True)[: 1 + averages] for key in keys]


@dataclass(frozen=True)
class HeldOutScore:
    """The results on one text or task.

    Args:
        name: Its short name.
        measures: Numbers with their standard errors, by the last part of the metric's name.
        warnings: Sentences about items that were cut or have unknown text.
    """

    name: str
    measures: dict[str, Estimate]
    warnings: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return the first result with its error."""
        key, estimate = next(iter(self.measures.items()))
        error = f" ± {estimate.error:.3f}" if math.isfinite(estimate.error) else ""
        return f"{self.name} {key} {estimate.value:.3f}{error}"


def metric_name(name: str, measure: str, *, average: bool) -> str:
    """Return the name of a measure of a text or task for loggers.

    Args:
        average: Whether the moving average of the weights is scored.
    """
    return f"{EVALUATED}{name}/{'ema_' if average else ''}{measure}"


def prepare_held_out(
    settings: HeldOutSettings, data: DataSettings, tokenizer: Tokenizer, *, context_length: int
) -> HeldOutSet | None:
    """Read the texts and tasks in the settings, so that their problems are found before the training starts.

    Args:
        data: The `data` settings of the training. They also decide how records and remote files are read here.

    Returns:
        The texts and tasks; None if the settings name none.

    Raises:
        UserError: If some cannot be used. It lists the problems of all.
    """
    if not settings.texts and settings.tasks is None:
        return None
    problems: list[str] = []
    texts: list[tuple[str, EvaluationText]] = []
    for path in settings.texts:
        with _collect(problems, f"evaluation.texts={path}"):
            texts.append((path, _read_text(path, data, tokenizer, max_bytes=settings.max_bytes)))
    tasks, tokens = list[Task](), sum(text.tokens.count for _, text in texts)
    with _collect(problems, "evaluation.tasks"):
        tasks = load_tasks(TaskSettings(path=settings.tasks, names=[], n_shots=None, limit=settings.task_limit))
        tokens += sum(_count_tokens(task, tokenizer, context_length) for task in tasks)
    if problems:
        raise UserError(problems)
    names = _short_names([*(path for path, _ in texts), *(task.name for task in tasks)])
    named_texts = {name: text for name, (_, text) in zip(names, texts, strict=False)}
    return HeldOutSet(named_texts, dict(zip(names[len(texts) :], tasks, strict=True)), tokenizer, tokens)


def score_held_out(scorer: Scorer, held_out: HeldOutSet, *, report: Callable[[int], None] | None = None) -> list[HeldOutScore]:
    """Score all texts and tasks. The numbers are the same as from evaluate.py without a stride.

    Args:
        report: Called repeatedly while the model is scored. It may raise an exception to end the scoring.

    Raises:
        UserError: If a loss is NaN or infinite.
    """
    scores = []
    for name, text in held_out.texts.items():
        found = score_text(scorer, text, report=report)
        result = summarize(name, found, stride=scorer.context_length, context_length=scorer.context_length)
        measures = {"loss": result.nats_per_token, "bits_per_byte": result.bits_per_byte}
        scores.append(HeldOutScore(name, _known(measures)))
    answers = [score_task(scorer, task, held_out.tokenizer, report=report) for task in held_out.tasks.values()]
    for name, one in zip(held_out.tasks, answers, strict=True):
        scores.append(HeldOutScore(name, _known(_task_measures(one)), tuple(one.warnings(scorer.context_length))))
    scores += [HeldOutScore(CORE, _known({CORE: one.metric})) for one in core_results(answers)]
    return scores


def held_out_warnings(held_out: HeldOutSet, training: TokenStream) -> list[str]:
    """Return a sentence about each text or task that occurs in the training set."""
    found = [text_overlap(THIS_RUN, text, training) for text in held_out.texts.values()]
    found += [task_overlap(THIS_RUN, task, held_out.tokenizer, training) for task in held_out.tasks.values()]
    return [warning for overlap in found if (warning := overlap.warning()) is not None]


def _read_text(path: str, data: DataSettings, tokenizer: Tokenizer, *, max_bytes: int | None) -> EvaluationText:
    settings = replace(data, name="text", path=path, url=None, sha256=None, sources=[], val_tokens=None, format="auto")
    source = typed_source(settings)
    assert source is not None
    text = source.tokenize(tokenizer, max_bytes=max_bytes)
    for warning in text.warnings:
        log.warning("%s", warning)
    return text


def _count_tokens(task: Task, tokenizer: Tokenizer, context_length: int) -> int:
    """Return the tokens that a model reads to score a task once.

    Raises:
        UserError: If an item cannot be scored.
    """
    check_characters(task, tokenizer)
    groups = TaskEncoder(task, tokenizer, context_length).requests()
    return sum(len(request.token_ids) for group in groups for request in group)


@contextmanager
def _collect(problems: list[str], setting: str) -> Iterator[None]:
    """Collect the problems of a text or task. Replace the names of settings of evaluate.py by their names here."""
    try:
        yield
    except UserError as error:
        for problem in error.problems:
            for pattern, replacement in RENAMED.items():
                problem = re.sub(pattern, replacement, problem)
            name, _, path = setting.partition("=")
            if path and problem.startswith(f"{path} "):
                problem = f"{name}={problem}"
            problems.append(problem if problem.startswith("evaluation.") else f"{setting}: {problem}")


def _short_names(paths: Iterable[str]) -> list[str]:
    """Return a different name for each path, with characters that all loggers accept."""
    own = [PurePath(path.rstrip("/\\")).name for path in paths]
    short = [_loggable(name.partition(".")[0] or name) for name in own]
    files = [len({other for other, same in zip(own, short, strict=True) if same == stem}) for stem in short]
    # wiki.valid.txt and wiki.test.txt must keep more of their names.
    stems = [_loggable(PurePath(name).stem) if n > 1 else stem for name, stem, n in zip(own, short, files, strict=True)]
    names: list[str] = []
    for stem in stems:
        same = sum(re.fullmatch(rf"{re.escape(stem)}(_\d+)?", name) is not None for name in names)
        names.append(f"{stem}_{same + 1}" if same else stem)
    return names


def _loggable(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("_.")[:MAX_NAME] or "text"


def _task_measures(answers: TaskResult) -> dict[str, Estimate]:
    others = {
        "centered": answers.centered,
        "accuracy_by_length": answers.accuracy_by_length,
        "perplexity": answers.perplexity,
    }
    return {"accuracy": answers.accuracy} | {key: one for key, one in others.items() if one is not None}


def _known(measures: dict[str, Estimate]) -> dict[str, Estimate]:
    return {key: estimate for key, estimate in measures.items() if math.isfinite(estimate.value)}

"""Describe the results of models on tasks in a table and in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gpt_pretrain.evaluation.statistics import Estimate
from gpt_pretrain.evaluation.tasks.task_results import (
    TaskResult,
    compare_accuracies,
    compare_core,
    compare_perplexities,
    core_results,
)

UNKNOWN = Estimate(math.nan, math.nan)
LARGE = 1e6  # A larger perplexity is shown with an exponent.


def task_rows(results: Sequence[TaskResult]) -> list[list[str]]:
    """Return the rows of a table of results on tasks, with the heading. Columns that no task needs are left out."""
    heading = ["Task", "Shots", "Model", "Items", "Accuracy", "±", "By length", "±", "Perplexity", "±", "Centered", "±"]
    rows = [heading]
    for result in results:
        columns = ((result.accuracy, 4), (result.accuracy_by_length, 4), (result.perplexity, 2), (result.centered, 4))
        numbers = [_format(number, digits=digits) for estimate, digits in columns for number in _pair(estimate)]
        rows.append([result.task, str(result.n_shots), result.model, f"{len(result.correct):,}", *numbers])
    has_shots = any(result.n_shots for result in results)
    kept = [
        index
        for index in range(len(heading))
        if (has_shots if index == 1 else index < 6 or any(row[index - index % 2] != "-" for row in rows[1:]))
    ]
    return [[row[index] for index in kept] for row in rows]


def task_comparisons(results: Sequence[TaskResult]) -> list[str]:
    """Return sentences that compare the best model with each other one on each task, and tell differences from noise."""
    sentences = []
    for task in dict.fromkeys(result.task for result in results):
        of_task = [one for one in results if one.task == task]
        best, *others = sorted(of_task, key=lambda one: -one.accuracy.value)
        sentences += [_compare_accuracy(best, other) for other in others]
        sentences += _perplexity_sentences(of_task)
    return sentences + _core_sentences(results)


def _compare_accuracy(best: TaskResult, other: TaskResult) -> str:
    difference, is_noise = compare_accuracies(best, other)
    size = f"{difference.value:.4f}{_plus_minus(difference.error)} of accuracy"
    if is_noise:
        return f"{best.task}: {best.model} and {other.model} do not differ beyond noise ({size})."
    return f"{best.task}: {best.model} is better than {other.model} by {size} (95% confidence)."


def _perplexity_sentences(results: Sequence[TaskResult]) -> list[str]:
    ranked = sorted(((one, one.losses) for one in results if one.losses is not None), key=lambda pair: float(pair[1].mean()))
    return [_compare_perplexity(*ranked[0], *other) for other in ranked[1:]]


def _compare_perplexity(best: TaskResult, best_losses: np.ndarray, other: TaskResult, other_losses: np.ndarray) -> str:
    factor, limit, is_noise = compare_perplexities(best_losses, other_losses)
    if is_noise:
        names = f"{best.task}: the perplexities of {best.model} and {other.model}"
        return f"{names} do not differ beyond noise (a factor of {factor:.3f})."
    interval = f"{factor:.3f} (95% confidence: {factor / limit:.3f} to {factor * limit:.3f})"
    return f"{best.task}: {other.model} has a higher perplexity than {best.model}, by a factor of {interval}."


def _core_sentences(results: Sequence[TaskResult]) -> list[str]:
    """Return sentences about the CORE metric of each model, and about the lead of the best one."""
    ranked = sorted(core_results(results), key=lambda one: -one.metric.value)
    sentences = [
        f"CORE of {one.model}: {one.metric.value:.4f}{_plus_minus(one.metric.error)}, over {one.n_tasks} tasks." for one in ranked
    ]
    for other in ranked[1:]:
        best = ranked[0].model
        of_models = ([one for one in results if one.model == name] for name in (best, other.model))
        difference, is_noise = compare_core(*of_models)
        size = f"{difference.value:.4f}{_plus_minus(difference.error)}"
        if is_noise:
            sentences.append(f"CORE: {best} and {other.model} do not differ beyond noise ({size}).")
        else:
            sentences.append(f"CORE: {best} is better than {other.model} by {size} (95% confidence).")
    return sentences


def _pair(estimate: Estimate | None) -> tuple[float, float]:
    shown = UNKNOWN if estimate is None else estimate
    return shown.value, shown.error


def _plus_minus(error: float) -> str:
    return f" ± {error:.4f}" if math.isfinite(error) else ""


def _format(value: float, *, digits: int) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:,.{digits}f}" if value < LARGE else f"{value:.3g}"

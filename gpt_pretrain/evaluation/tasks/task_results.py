"""Compute the results of models on tasks: accuracies, perplexities and the CORE metric, with errors and differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt_pretrain.evaluation.statistics import Estimate, finite_or_none, student_limit

MAX_CHANCE = 0.05  # A difference is noise if its probability by chance is higher.
LEAST_LIMIT = 1e-3  # Limit of a difference relative to it; a smaller limit comes from copies of an item.
MIN_COMPARED = 6  # Items; fewer prove nothing at this level, even if all of them agree.


@dataclass(frozen=True)
class TaskResult:
    """The results of one model on a task.

    Args:
        model: The name of the model.
        task: The name of the task.
        correct: For each item, 1 if the choice with the highest log-probability is right; without choices, 1 if each token of
            the continuation is the most likely one. In the CORE set, the log-probability per token decides.
        correct_by_length: The same by the highest log-probability per character of a choice; None without choices.
        losses: Minus the log-probability of each continuation; None for a task with choices.
        truncated: Number of items that are longer than the context and are cut on the left.
        unknown: Number of items with text that the vocabulary lacks.
        unknown_example: A part of such text.
        n_shots: Number of examples before each item.
        baseline: The accuracy of guessing; only for the CORE set.
    """

    model: str
    task: str
    correct: np.ndarray
    correct_by_length: np.ndarray | None = None
    losses: np.ndarray | None = None
    truncated: int = 0
    unknown: int = 0
    unknown_example: str = ""
    n_shots: int = 0
    baseline: float | None = None

    @property
    def accuracy(self) -> Estimate:
        """The share of correctly answered items, by the sum of the log-probabilities."""
        return mean_estimate(self.correct)

    @property
    def accuracy_by_length(self) -> Estimate | None:
        """The share of correctly answered items, by the log-probability per character."""
        return None if self.correct_by_length is None else mean_estimate(self.correct_by_length)

    @property
    def perplexity(self) -> Estimate | None:
        """The exponential of the mean loss of a continuation. Its error follows from the error of the mean."""
        if self.losses is None:
            return None
        loss = mean_estimate(self.losses)
        value = _bounded_exp(loss.value)
        return Estimate(value, value * loss.error)

    @property
    def centered(self) -> Estimate | None:
        """The accuracy on a scale from 0 for guessing to 1 for no mistake."""
        return None if self.baseline is None else center(self.accuracy, self.baseline)

    def as_json(self) -> dict[str, Any]:
        """Return the numbers for results.json, under the names of the LM Evaluation Harness."""
        estimates = {
            "acc": self.accuracy,
            "acc_norm": self.accuracy_by_length,
            "perplexity": self.perplexity,
            "centered": self.centered,
        }
        numbers: dict[str, Any] = {"model": self.model, "task": self.task, "n_shots": self.n_shots, "items": len(self.correct)}
        for name, estimate in estimates.items():
            if estimate is not None:
                numbers[name] = estimate.value
                numbers[f"{name}_stderr"] = finite_or_none(estimate.error)
        return numbers | {"truncated": self.truncated, "unknown": self.unknown}

    def warnings(self, context_length: int) -> list[str]:
        """Return sentences about items that were cut or have unknown text."""
        items = f"of {len(self.correct):,} items"
        sentences = []
        if self.truncated:
            sentences.append(
                f"{self.task}: {self.truncated:,} {items} are longer than the {context_length:,} tokens of context of "
                f"{self.model}. They are cut at their beginning."
            )
        if self.unknown:
            such_as = f", such as {self.unknown_example!a}" * bool(self.unknown_example)
            sentences.append(
                f"{self.task}: {self.unknown:,} {items} have text that the vocabulary of {self.model} lacks{such_as}. The model "
                "reads a token for unknown text instead, so its result means little."
            )
        return sentences


@dataclass(frozen=True)
class CoreResult:
    """The CORE metric of a model: the mean of its centered accuracies.

    Args:
        model: The name of the model.
        n_tasks: Number of tasks.
        metric: The mean, with its standard error over the items of the tasks.
    """

    model: str
    n_tasks: int
    metric: Estimate

    def as_json(self) -> dict[str, Any]:
        """Return the numbers for results.json."""
        numbers = {"core": self.metric.value, "core_stderr": finite_or_none(self.metric.error)}
        return {"model": self.model, "tasks": self.n_tasks} | numbers


def core_results(results: Sequence[TaskResult]) -> list[CoreResult]:
    """Return the CORE metric of each model that has been scored on tasks of the set."""
    found = []
    for model in dict.fromkeys(result.model for result in results):
        centered = [one.centered for one in results if one.model == model and one.centered is not None]
        if centered:
            error = math.sqrt(math.fsum(one.error**2 for one in centered)) / len(centered)
            found.append(CoreResult(model, len(centered), Estimate(float(np.mean([one.value for one in centered])), error)))
    return found


def center(accuracy: Estimate, baseline: float) -> Estimate:
    """Return an accuracy on a scale from 0 for guessing to 1 for no mistake."""
    return Estimate((accuracy.value - baseline) / (1 - baseline), accuracy.error / (1 - baseline))


def mean_estimate(values: np.ndarray) -> Estimate:
    """Return the mean of independent values with its standard error. The error of a single value is NaN."""
    count = len(values)
    return Estimate(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan)


def compare_accuracies(first: TaskResult, second: TaskResult) -> tuple[Estimate, bool]:
    """Return the first model's accuracy minus the second's, item by item, and whether it is noise at 95% confidence.

    An exact sign test over the items on which the models differ decides (McNemar 1947). It is also valid for few items. The error
    is only for display. It is NaN for a single item, and 0 if the models differ on no item or in the same way on all items.
    """
    if len(first.correct) != len(second.correct):
        raise ValueError(f"{len(first.correct)} and {len(second.correct)} items cannot be compared")
    differences = first.correct - second.correct
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    return mean_estimate(differences), sign_test(wins, losses) > MAX_CHANCE


def compare_perplexities(first: np.ndarray, second: np.ndarray) -> tuple[float, float, bool]:
    """Return the factor by which the second model's perplexity is higher, its 95% limit, and whether it is noise.

    Both losses of an item are compared with each other. The difficulty of an item therefore does not count.

    Args:
        first: The first model's loss of each item, (N,).
        second: The second model's loss of each item, (N,).

    Returns:
        The factor; the half-width of its interval as a factor; True for noise.
    """
    difference = mean_estimate(second - first)
    limit = difference.error * student_limit(len(first) - 1) if len(first) > 1 else math.inf
    # An error of nearly 0 comes from copies of an item. They prove nothing.
    is_copied = limit < LEAST_LIMIT * abs(difference.value)
    is_noise = len(first) < MIN_COMPARED or is_copied or not abs(difference.value) > limit
    return _bounded_exp(difference.value), _bounded_exp(limit), is_noise


def compare_core(first: Sequence[TaskResult], second: Sequence[TaskResult]) -> tuple[Estimate, bool]:
    """Return the first model's CORE metric minus the second's, item by item, and whether it is noise at 95% confidence."""
    others = {result.task: result for result in second}
    differences = []
    for one in first:
        if one.baseline is not None:
            differences.append(center(mean_estimate(one.correct - others[one.task].correct + one.baseline), one.baseline))
    error = math.sqrt(math.fsum(one.error**2 for one in differences)) / len(differences)
    estimate = Estimate(float(np.mean([one.value for one in differences])), error)
    n_items = sum(len(one.correct) for one in first if one.baseline is not None)
    is_noise = n_items < MIN_COMPARED or not abs(estimate.value) > student_limit(n_items - 1) * error or error == 0
    return estimate, is_noise


def sign_test(wins: int, losses: int) -> float:
    """Return the probability that tosses of a fair coin are at least as uneven as this, in either direction."""
    count = wins + losses
    log_total = math.lgamma(count + 1) - count * math.log(2)
    tail = (math.exp(log_total - math.lgamma(k + 1) - math.lgamma(count - k + 1)) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * math.fsum(tail))


def _bounded_exp(value: float) -> float:
    return math.exp(min(value, 700.0))

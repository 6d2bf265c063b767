"""The results of an evaluation: numbers for results.json, and a table and sentences for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gpt_pretrain.evaluation.statistics import Clusters, Estimate, bits, cluster_scores, finite_or_none, paired_difference, ratio
from gpt_pretrain.evaluation.text_scores import TextScores
from gpt_pretrain.system.formatting import format_perplexity


@dataclass(frozen=True)
class TextResult:
    """The losses of one model on a text.

    Args:
        model: The name of the model.
        stride: Tokens between the ends of two windows.
        context_length: The most tokens that the model reads at a time.
        tokens: Number of scored tokens.
        unscored: Number of tokens that are not scored, since no token precedes them.
        documents: Number of documents.
        nats_per_token, bits_per_byte, bits_per_character: Mean losses with their standard errors; NaN if the tokens do not show
            the size of their text.
        accuracy: Share of the tokens that are the model's most likely ones.
        clusters: Sums over clusters of tokens, for errors and comparisons.
    """

    model: str
    stride: int
    context_length: int
    tokens: int
    unscored: int
    documents: int
    nats_per_token: Estimate
    bits_per_byte: Estimate
    bits_per_character: Estimate
    accuracy: float
    clusters: Clusters

    @property
    def is_overlapping(self) -> bool:
        """True if the windows overlap."""
        return self.stride < self.context_length

    @property
    def perplexity(self) -> float:
        """The exponential of the loss in nats per token; infinity if it is too large for a float."""
        loss = self.nats_per_token.value
        return math.exp(loss) if loss < 700 else math.inf

    def as_json(self) -> dict[str, Any]:
        """Return the numbers for results.json; null means unknown."""
        numbers: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("model", "stride", "context_length", "tokens", "unscored", "documents", "accuracy", "perplexity")
        }
        for name in ("nats_per_token", "bits_per_byte", "bits_per_character"):
            numbers[name] = {key: finite_or_none(value) for key, value in asdict(getattr(self, name)).items()}
        return numbers | {
            "perplexity": finite_or_none(self.perplexity),
            "errors_over": self.clusters.kind,
            "clusters": len(self.clusters.nats),
        }


def summarize(model: str, scores: TextScores, *, stride: int, context_length: int) -> TextResult:
    """Return the result of a model on a text."""
    clusters = cluster_scores(scores)
    scored = ~np.isnan(scores.losses)
    return TextResult(
        model=model,
        stride=stride,
        context_length=context_length,
        tokens=int(scored.sum()),
        unscored=scores.n_unscored,
        documents=len(scores.document_starts),
        nats_per_token=ratio(clusters.nats, clusters.tokens),
        bits_per_byte=bits(ratio(clusters.nats, clusters.n_bytes)),
        bits_per_character=bits(ratio(clusters.nats, clusters.characters)),
        accuracy=float(scores.is_top[scored].mean()),
        clusters=clusters,
    )


def result_rows(results: Sequence[TextResult]) -> list[list[str]]:
    """Return the rows of a table of results, with the heading first and then the best model."""
    heading = ["Model", "Stride", "Tokens", "Nats per token", "±", "Perplexity", "Bits per byte", "±", "Bits per character"]
    rows = [
        [
            result.model,
            str(result.stride),
            f"{result.tokens:,}",
            _number(result.nats_per_token.value),
            _number(result.nats_per_token.error),
            format_perplexity(result.nats_per_token.value),
            _number(result.bits_per_byte.value),
            _number(result.bits_per_byte.error),
            _number(result.bits_per_character.value),
        ]
        for result in rank_results(results)
    ]
    return [heading, *rows]


def rank_results(results: Sequence[TextResult]) -> list[TextResult]:
    """Sort results from best to worst by bits per byte. Results of unknown size come last, by nats per token."""

    def key(result: TextResult) -> tuple[bool, float, float]:
        size = result.bits_per_byte.value
        known = math.isfinite(size)
        return not known, size if known else 0.0, result.nats_per_token.value

    return sorted(results, key=key)


def comparisons(results: Sequence[TextResult]) -> list[str]:
    """Return sentences that compare the best model with each other one, and tell differences from noise."""
    return [f"{_prefix(best)}{_compare(best, other)}" for best, other in _compared(results)]


def differences(results: Sequence[TextResult]) -> list[dict[str, Any]]:
    """Return the numbers of the comparisons for results.json; null means unknown."""
    found = []
    for best, other in _compared(results):
        if (difference := paired_difference(other.clusters, best.clusters)) is not None:
            numbers = {key: finite_or_none(value) for key, value in asdict(difference.bits_per_byte).items()}
            is_noise = difference.is_noise or difference.bits_per_byte.value <= 0
            about = {"model": best.model, "other": other.model, "stride": best.stride, "bits_per_byte": numbers}
            found.append(about | {"limit": finite_or_none(difference.limit), "is_noise": is_noise})
    return found


def _compared(results: Sequence[TextResult]) -> Iterator[tuple[TextResult, TextResult]]:
    """Yield the best model with each other one.

    Results without overlap are compared with each other, and so are results with the typed stride.
    """
    for overlapping in (False, True):
        ranked = rank_results([result for result in results if result.is_overlapping == overlapping])
        yield from ((ranked[0], other) for other in ranked[1:])


def _prefix(best: TextResult) -> str:
    return f"With stride {best.stride}: " if best.is_overlapping else ""


def _compare(best: TextResult, other: TextResult) -> str:
    """Return a sentence about the difference between two models."""
    both = f"{best.model} and {other.model}"
    difference = paired_difference(other.clusters, best.clusters)
    if difference is None:
        unknown = [one.model for one in (best, other) if not math.isfinite(one.bits_per_byte.value)]
        if unknown:
            return (
                f"{both}: not compared, since the tokens of {' and '.join(unknown)} do not tell the number of bytes in the text."
            )
        return f"{both}: not compared, since their tokens cover different parts of the text."
    estimate, limit = difference.bits_per_byte, difference.limit
    if not math.isfinite(limit):
        return f"{both}: the text is too short to tell a difference from noise."
    size = f"{max(estimate.value, 0.0):.4f} ± {estimate.error:.4f} bits per byte"
    over = f"{len(best.clusters.nats)} {best.clusters.kind}"
    if estimate.value > 0 and not difference.is_noise:
        return f"{best.model} is better than {other.model} by {size} (95% confidence, over {over})."
    return f"{both}: no difference beyond noise ({size}, over {over})."


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "-"

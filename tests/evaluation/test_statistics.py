"""Standard errors are those of repeated sampling, and a difference is called real only where it is."""

import math

import numpy as np
import pytest

from gpt_pretrain.evaluation.results import TextResult, comparisons, rank_results
from gpt_pretrain.evaluation.statistics import Clusters, Estimate, bits, paired_difference, ratio, student_limit


def clusters(nats: np.ndarray, n_bytes: np.ndarray) -> Clusters:
    return Clusters("documents", nats, n_bytes, n_bytes, n_bytes)


def test_the_error_of_a_ratio_is_the_spread_of_repeated_samples() -> None:
    generator = np.random.default_rng(0)
    estimates = []
    for _ in range(2000):
        sizes = generator.integers(10, 400, 60)
        level = 3 + generator.normal(0, 0.5, 60)  # documents differ in difficulty
        estimates.append(ratio(sizes * level, sizes))
    spread = np.std([one.value for one in estimates])
    assert np.mean([one.error for one in estimates]) == pytest.approx(spread, rel=0.05)


def test_equal_models_seldom_differ_and_a_real_difference_is_found() -> None:
    generator = np.random.default_rng(1)

    def share_of_differences(gap: float) -> float:
        found = 0
        for _ in range(1000):
            sizes = generator.integers(50, 400, 25)
            level = 3 + generator.normal(0, 0.5, 25)  # the same for both models
            first, second = (sizes * (level + generator.normal(0, 0.05, 25) + shift) for shift in (gap, 0))
            difference = paired_difference(clusters(first, sizes), clusters(second, sizes))
            assert difference is not None
            found += not difference.is_noise
        return found / 1000

    assert share_of_differences(0) == pytest.approx(0.05, abs=0.025)
    assert share_of_differences(0.1) > 0.99


def test_too_few_clusters_tell_nothing() -> None:
    one = clusters(np.array([10.0]), np.array([5]))
    assert math.isnan(ratio(one.nats, one.tokens).error)
    difference = paired_difference(one, clusters(np.array([90.0]), np.array([5])))
    assert difference is not None
    assert difference.is_noise
    assert math.isnan(ratio(np.array([1.0]), np.array([0])).value)


def test_clusters_of_other_texts_are_not_compared() -> None:
    first = clusters(np.array([1.0, 2.0]), np.array([5, 5]))
    assert paired_difference(first, clusters(np.array([1.0, 2.0, 3.0]), np.array([5, 5, 5]))) is None
    assert paired_difference(first, clusters(np.array([1.0, 2.0]), np.array([50, 50]))) is None
    # A model without an end of text scores one token less.
    assert paired_difference(first, clusters(np.array([1.0, 2.0]), np.array([4, 5]))) is not None


@pytest.mark.parametrize(("degrees", "limit"), [(1, 12.706), (10, 2.228), (19, 2.093), (20, 2.086), (30, 2.042), (100, 1.984)])
def test_limits_are_those_of_student(degrees: int, limit: float) -> None:
    assert student_limit(degrees) == pytest.approx(limit, rel=0.01)
    assert student_limit(0) == math.inf


def result(name: str, nats: float, *, n_bytes: float = 10.0, context_length: int = 16, stride: int | None = None) -> TextResult:
    sizes = np.full(30, n_bytes)
    level = nats * (1 + 0.01 * np.cos(np.arange(30)))
    sums = Clusters("documents", 5 * level, np.full(30, 5.0), sizes, sizes)
    per_byte = bits(ratio(sums.nats, sums.n_bytes))
    unknown = Estimate(math.nan, math.nan)
    return TextResult(
        name, stride or context_length, context_length, 150, 0, 30, ratio(sums.nats, sums.tokens), per_byte, unknown, 0.1, sums
    )


def test_models_are_ranked_by_bits_per_byte_and_those_of_unknown_size_come_last() -> None:
    few_tokens, many, unknown = result("few", 6.0, n_bytes=20.0), result("many", 4.0), result("unknown", 1.0, n_bytes=0.0)
    assert [one.model for one in rank_results([unknown, many, few_tokens])] == ["few", "many", "unknown"]


def test_the_better_model_is_named_also_beside_one_of_unknown_size() -> None:
    sentences = comparisons([result("unknown", 1.0, n_bytes=0.0), result("worse", 6.0), result("better", 5.0)])
    assert sentences[0].startswith("better is better than worse by")
    assert "the tokens of unknown do not tell the number of bytes in the text" in sentences[1]


def test_models_with_different_contexts_are_compared() -> None:
    models = [result("long", 4.0, context_length=64), result("short", 5.0), result("short", 4.9, stride=4)]
    assert comparisons(models)[0].startswith("long is better than short by")
    models += [result("long", 3.9, context_length=64, stride=4)]
    assert comparisons(models)[1].startswith("With stride 4: long is better than short by")

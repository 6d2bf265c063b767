"""The suggested size of a vocabulary: the minimum of a fitted surface, with an honest interval."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gpt_pretrain.evaluation.vocabulary_size import MIN_TEXT, SizeFit, TrialPoint, describe_suggestion, trial_sizes

LENGTHS = (250_000.0, 500_000.0, 1_000_000.0)


def surface(size: float, text_bytes: float) -> float:
    """Return bits per byte that are lowest at 2,048 tokens after 1 MB, and at twice the size after twice the text."""
    doublings, size_doublings = math.log2(text_bytes / 1_000_000), math.log2(size / 2048)
    return 2.5 - 0.2 * doublings + 0.05 * size_doublings**2 - 0.1 * size_doublings * doublings


def points(noise: float = 0.0) -> list[TrialPoint]:
    rng = np.random.default_rng(0)
    sizes = [500, 1000, 2000, 4000, 8000, 2000]
    return [TrialPoint(size, n_bytes, surface(size, n_bytes) + noise * rng.normal()) for size in sizes for n_bytes in LENGTHS]


@pytest.mark.parametrize(("n_bytes", "best"), [(1e6, 2048), (2e6, 4096), (5e5, 1024)])
def test_the_best_size_of_a_surface_is_found(n_bytes: float, best: int) -> None:
    found = SizeFit(points()).suggest(n_bytes)
    assert found.vocab_size == pytest.approx(best, rel=0.06)
    assert found.bits_per_byte == pytest.approx(surface(best, n_bytes), abs=0.002)
    assert found.lowest < best < found.highest and not found.at_edge


def test_the_interval_grows_with_the_noise_and_with_the_extrapolation() -> None:
    exact, noisy = SizeFit(points()), SizeFit(points(noise=0.03))
    widths = [fit.suggest(n).highest / fit.suggest(n).lowest for fit, n in ((exact, 1e6), (noisy, 1e6))]
    assert widths[0] < widths[1]
    assert noisy.suggest(1e6).error < noisy.suggest(8e6).error
    assert noisy.suggest(1e6).lowest < 2048 < noisy.suggest(1e6).highest
    assert 0.01 < noisy.noise < 0.06 and exact.noise == 0.005


def test_a_best_size_beyond_those_tried_is_said() -> None:
    found = SizeFit(points()).suggest(8e6)
    assert found.at_edge and found.vocab_size == 8000
    lines = describe_suggestion(points(), bytes_per_token=[2.0, 2.5, 3.0, 3.5, 4.0], total_bytes=1e9)
    text = "\n".join(lines)
    assert "Best after 1.0 MB: 2,0" in text
    assert "4.0 times as much (the whole training has 1.0 GB): 8,000 tokens, the largest size tried" in text
    assert lines[-1] == "Suggested: vocab_size=8000"


def test_trainings_that_do_not_decide_say_so() -> None:
    for noise, n_bytes, remedy in (
        (0.5, 4e6, " A larger trial_minutes lets them read more text."),
        (0.5, 1e6, ""),
        (0.0, 1e6, None),
    ):
        lines = describe_suggestion(points(noise), bytes_per_token=[2.0, 2.5, 3.0, 3.5, 4.0], total_bytes=n_bytes)
        said = [line for line in lines if line.startswith("These trainings do not decide")]
        expected = f"These trainings do not decide: every size tried may be as good.{remedy}"
        assert said == ([] if remedy is None else [expected])
        assert lines[-1].startswith("Suggested: vocab_size=")


def test_sizes_follow_from_the_text() -> None:
    assert trial_sizes(MIN_TEXT - 1) == []
    assert trial_sizes(MIN_TEXT) == [500, 590, 710, 840, 1000]
    assert trial_sizes(10**9) == [500, 1400, 4000, 11000, 32000]

"""The benchmarks of the server compare and count what they claim; no test depends on a speed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import report, serving
from benchmarks.servers import ServedWeights, our_server, save_random_weights
from benchmarks.serving import TITLES, compare, serving_cases
from benchmarks.serving_load import Outcome, memory_growth, run_load, summary
from gpt_pretrain.model.config import GPTConfig

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> ServedWeights:
    return save_random_weights(Path(tmp_path_factory.mktemp("weights")), GPTConfig(257, 128, 48, 4, 2, qkv_bias=True), "byte")


def test_a_short_load_has_only_right_texts(weights: ServedWeights) -> None:
    outcome = run_load(weights, seconds=4, clients=8)
    assert [problem for problem in outcome.problems if "memory" not in problem] == []
    assert outcome.counts["right"] > 5
    assert outcome.tokens > 0
    assert "right" in summary(outcome, seconds=4)


def test_growth_is_that_after_the_warm_up() -> None:
    sizes = [(0.0, 50), (0.2, 100), (0.3, 110), (0.5, 300), (0.95, 121)]
    assert memory_growth(Outcome(memory=sizes)) == pytest.approx(0.1)
    assert "+10.0% (limit 5%)" in summary(Outcome(memory=sizes, problems=["x"]), seconds=1)


def test_the_server_is_compared_with_generate(weights: ServedWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "FIRST_TOKENS", 2)
    with our_server(weights) as own:
        found = compare(weights, own, own, rounds=1, n_tokens=6)
    for name, case in serving_cases(6).items():
        rows = report.rows(name, case, found[name])
        assert [row.subject for row in rows] == list(serving.SUBJECTS[name])
        assert all(row.seconds > 0 for row in rows)
    assert set(found) == set(TITLES)

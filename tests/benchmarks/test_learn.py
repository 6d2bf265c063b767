"""The comparison of learning trains what it says, at a tiny size."""

from pathlib import Path

import pytest
import torch

from benchmarks import learn, nanogpt_recipe
from benchmarks.nanogpt_recipe import LR, MIN_LR, WARMUP, Learned, NanoGPT, lr_of, validation_loss

TEXT = "Every effort moves you, and every step forward counts. " * 60


def test_the_peer_trains_and_is_measured() -> None:
    text = torch.randint(20, (2000,), generator=torch.Generator().manual_seed(1))
    learned = nanogpt_recipe.train(text[:1800], text[1800:], vocab_size=20, seed=1, steps=2)
    assert (learned.steps, learned.tokens) == (2, 2 * 12 * 64)
    assert learned.wall_seconds > 0
    assert learned.loss == pytest.approx(3.0, abs=0.2), "close to a guess among 20 characters"


def test_the_peer_has_the_published_size_and_schedule() -> None:
    matrices = 4 * (3 + 1 + 4 + 4) * 128 * 128
    assert sum(parameter.numel() for parameter in NanoGPT(65).parameters()) == matrices + (65 + 64) * 128 + 9 * 128
    assert lr_of(0, 2000) == pytest.approx(LR / (WARMUP + 1))
    assert lr_of(WARMUP, 2000) == LR
    assert lr_of(2000, 2000) == pytest.approx(MIN_LR)


def test_the_validation_covers_all_whole_windows() -> None:
    class Counting(torch.nn.Module):
        def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot((token_ids + 1) % 7, 7) * 100.0

    assert validation_loss(Counting(), torch.arange(64 * 3 + 1) % 7) == pytest.approx(0, abs=1e-6)


def test_the_default_text_is_always_the_same() -> None:
    text = learn.python_documentation()
    assert 300_000 < len(text) <= learn.CHARACTERS
    assert text.isascii()
    assert text == learn.python_documentation()


def test_the_table_compares_with_the_peer(tmp_path: Path) -> None:
    peers = [Learned(2000, 1536000, 100.0, 90.0, 1.9), Learned(2000, 1536000, 200.0, 90.0, 1.8)]
    found = {learn.PEER: peers, "ours": [Learned(300, 230400, 20.0, 18.0, 1.7), Learned(300, 230400, 40.0, 18.0, 1.6)]}
    *_, last = learn.table(found).splitlines()
    assert last == "| ours | 300 | 230,400 | 30 s (0.20) | 18 s (0.20) | 1.650 ± 0.071 |"


@pytest.mark.slow
def test_both_train_on_one_text(tmp_path: Path) -> None:
    text = learn.learn_text(TEXT, tmp_path)
    for train in (learn.ours, learn.peer):
        learned = train(text, seed=1, steps=2, folder=tmp_path)
        assert learned.steps == 2
        assert 0 < learned.loss < 4

"""The comparison of budgets trains what it says, at a tiny size."""

from pathlib import Path

import pytest
import torch

from benchmarks import budget, nanogpt_recipe
from benchmarks.budget import Result

TEXT = "Every effort moves you, and every step forward counts. " * 60


def test_a_recipe_is_cut_to_its_time() -> None:
    text = torch.randint(20, (3000,), generator=torch.Generator().manual_seed(1))
    learned = nanogpt_recipe.train_for(0.0, text[:2700], text[2700:], vocab_size=20, seed=1, recipe=nanogpt_recipe.CPU)
    assert (learned.steps, learned.tokens) == (1, 12 * 64)
    assert 0 < learned.loss < 4


def test_the_recipe_for_a_gpu_has_the_published_size() -> None:
    matrices = 6 * (3 + 1 + 4 + 4) * 384 * 384
    model = nanogpt_recipe.NanoGPT(65, nanogpt_recipe.GPU)
    assert sum(parameter.numel() for parameter in model.parameters()) == matrices + (65 + 256) * 384 + 13 * 384


def test_the_last_tenth_of_a_text_is_held_out(tmp_path: Path) -> None:
    text = budget.split_text("name", "a" * 90 + "b" * 10, tmp_path)
    assert (text.train.read_text(), text.held_out.read_text()) == ("a" * 90, "b" * 10)


def test_what_a_run_foretells_is_read(tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text("expect  2.17 bits per byte, in nine of ten cases between 2.00 and 2.30; limited by time")
    assert budget.expected_by(tmp_path) == [2.17, 2.0, 2.3]


def test_a_subject_that_fails_is_reported_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = budget.split_text("name", TEXT, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(budget.SUBJECTS, "defaults", failing)
        assert budget.measure("defaults", budget.Task(text, "2m", 120.0, 1, tmp_path / "run")) is None
    assert "failed: the disk is full" in capsys.readouterr().out


def failing(*_: object) -> tuple[float, float]:
    raise OSError("the disk is full")


def test_the_table_compares_with_the_budget() -> None:
    results = [Result("a.txt", "2m", "budget=", 119.0, 2.0, [2.1, 1.9, 2.3]), Result("a.txt", "2m", "defaults", 140.0, 2.5, [])]
    *_, first, second = budget.table(results).splitlines()
    assert first == "| a.txt | 2m | budget= | 119 s | 2.000 | 1.00 | 2.10 (1.90 to 2.30) |"
    assert second == "| a.txt | 2m | defaults | 140 s | 2.500 | 1.25 |  |"

"""A sweep keeps the model, optimizer and schedule that were the default when it was started."""

from pathlib import Path

import pytest

from gpt_pretrain.commands.command_line.stored_overrides import stored_options
from tests.conftest import ROOT

STORED = """
hydra:
  overrides: {hydra: [], task: ["seed=1,2"]}
  runtime:
    choices: {model: gpt2_124m, optimizer: adamw, scheduler: ../constant, data: sample}
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    (tmp_path / "multirun.yaml").write_text(STORED, encoding="utf-8")
    return tmp_path


def test_options_that_were_the_default_are_kept(sweep: Path) -> None:
    assert stored_options(sweep, chosen={"seed"}) == ["model=gpt2_124m", "optimizer=adamw"], "and no path among them"
    assert stored_options(sweep, chosen={"optimizer"}) == ["model=gpt2_124m"]


@pytest.mark.parametrize("group", ["model", "experiment", "budget"])
def test_a_model_or_a_budget_that_is_typed_chooses_for_itself(sweep: Path, group: str) -> None:
    assert stored_options(sweep, chosen={group}) == []


def test_a_sweep_of_an_earlier_version_names_its_options() -> None:
    earlier = ROOT / "tests" / "data" / "compat" / "0.1.0" / "sweep"
    assert stored_options(earlier, chosen=set()) == ["model=tiny", "optimizer=adamw", "scheduler=constant"]

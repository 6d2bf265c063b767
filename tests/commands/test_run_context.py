"""The frame around a run: what happens when nothing is left to train."""

from pathlib import Path

import pytest

from gpt_pretrain.commands.process import run_context
from gpt_pretrain.errors import AlreadyCompleteError
from gpt_pretrain.runs.metadata import read_metadata


def train_nothing(run_dir: Path, *, writes: bool) -> None:
    with run_context.run_context(run_dir, script="train.py", writes=writes):
        raise AlreadyCompleteError("complete", result={"best_val_loss": 1.5})


@pytest.mark.parametrize("writes", [True, False])
def test_a_complete_job_of_a_sweep_succeeds_in_each_of_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: bool
) -> None:
    started = {"command": "python train.py", "overrides": ["seed=1"], "swept": ["seed=1"]}
    monkeypatch.setattr(run_context, "start_info", lambda script: started)
    train_nothing(tmp_path, writes=writes)
    metadata = read_metadata(tmp_path)
    assert (metadata["result"], metadata["state"]) == ({"best_val_loss": 1.5}, "finished") if writes else metadata == {}


def test_a_complete_single_run_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        train_nothing(tmp_path, writes=True)
    assert capsys.readouterr().err == "error: complete\n"
    assert read_metadata(tmp_path)["state"] == "finished"

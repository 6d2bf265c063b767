"""Commands that ask for something else than their user means: refused before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gpt_pretrain.commands.command_words import sort_arguments
from gpt_pretrain.commands.hydra_arguments import apply_resume, check_arguments
from gpt_pretrain.errors import UserError
from gpt_pretrain.generation.config import SamplerConfig
from gpt_pretrain.generation.sampling import sample_next
from gpt_pretrain.runs.metadata import METADATA_FILE


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-m", "run_dir=x", "seed=1,2"], "run_dir=x: all jobs of a sweep would share this folder. Type hydra.sweep.dir=x"),
        (["data.path="], "data.path= has no value. Give a path, or leave out data.path="),
        (["init_from=''"], "init_from='' has no value."),
        (["-m", "optimizer.lr=1e-3,nan"], "optimizer.lr=nan: must be a finite number above 0"),
        (["-m", "trainer.max_epochs=1,0"], "trainer.max_epochs=0: must be at least 1 epoch."),
        (["optimizer.betas=0.9,0.95"], "must be a list of numbers, such as [0.9, 0.95]"),
        (["\u201coptimizer.lr=1e-3\u201d"], "are not the shell's quotation marks. Type optimizer.lr=1e-3"),
        (["trainer.max_steps=\u201d3\u201d"], "are not the shell's quotation marks. Type trainer.max_steps=3"),
    ],
)
def test_what_nobody_means_is_refused_before_the_start(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_arguments(sort_arguments(words), script="train")
    assert message in str(caught.value)


@pytest.mark.parametrize("key", ["run_dir", "hydra.run.dir"])
def test_a_resumed_run_has_no_other_folder(tmp_path: Path, key: str) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / METADATA_FILE).write_text("{}")
    (run / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(UserError, match=r"continues in its own folder, so .* has no effect"):
        apply_resume([f"resume={run}", f"{key}={tmp_path / 'other'}"], typed=[])
    assert apply_resume([f"resume={run}", f"{key}={run}"], typed=[])


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-20])
def test_a_tiny_temperature_takes_the_most_likely_token(temperature: float) -> None:
    chosen = sample_next(torch.tensor([[0.0, 2.0, 1.0]]), SamplerConfig(1, temperature, top_k=2))
    assert chosen.tolist() == [1]

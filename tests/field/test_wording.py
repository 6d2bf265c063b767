"""Lines on screen that a newcomer reads without stumbling."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gpt_pretrain import load_settings
from gpt_pretrain.checkpoints.pretrained import load_pretrained
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.json_files import parse_json
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.texts.finding import match_files
from tests.helpers.training_runs import Printed, Train

Script = Callable[..., "subprocess.CompletedProcess[str]"]

TIMER = "{_target_: lightning.pytorch.callbacks.Timer}"
SMALL = [
    *("model=tiny", "model.emb_dim=16", "model.n_layers=1", "model.n_heads=2", "model.context_length=16", "tokenizer=byte"),
    *("data.path=text.txt", "data.batch_size=4", "data.cache_dir=cache", "trainer.accelerator=cpu", "trainer.precision=32-true"),
    *("callbacks=minimal", "logger=csv"),
]


@pytest.fixture
def text(tmp_path: Path) -> None:
    """Write a small text into the folder of the test."""
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    (tmp_path / "cache").mkdir()


@pytest.mark.usefixtures("text")
@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_a_mapping_is_set_as_a_whole_or_by_its_names(script: Script, prefix: str) -> None:
    whole = f"{prefix}callbacks.custom={{one: {TIMER}}}"
    done = script(
        "train.py", *SMALL, whole, f"{prefix}callbacks.custom.two={TIMER}", "data.remote.options={anon: true}", "--cfg=job"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("_target_: lightning.pytorch.callbacks.Timer") == 2
    assert "anon: true" in done.stdout


def test_what_a_mapping_must_be_has_an_example(script: Script) -> None:
    done = script("train.py", "callbacks.custom=3")
    assert done.stderr == "error: callbacks.custom=3: must be a mapping, such as {name: value}.\n"


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["start_context="], "start_context is empty, but every sample begins with it. Give at least one character."),
        (["callbacks=grid", 'callbacks.grid.prompts=["", "A"]'], "no prompt may be empty; leave out the empty one."),
    ],
)
def test_an_empty_prompt_is_one_problem(train: Train, overrides: list[str], problem: str) -> None:
    with pytest.raises(UserError) as caught:
        train(*overrides)
    (found,) = caught.value.problems
    assert found.endswith(problem)


@pytest.mark.usefixtures("text")
def test_a_sweep_of_one_job_runs_one_job(script: Script) -> None:
    done = script("train.py", "-m", *SMALL, "trainer.max_steps=2", "seed=1", "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stderr
    assert "Running 1 job\n" in done.stdout
    assert "1 jobs" not in done.stdout


@pytest.mark.parametrize(
    ("overrides", "length"),
    [
        (["trainer.max_steps=2"], "2 of the 3 steps of an epoch"),
        (["trainer.max_epochs=1"], "1 epoch, 3 steps"),
        (["trainer.max_steps=4"], "1.33 epochs, 4 steps"),
        (["trainer.max_epochs=2", "trainer.limit_train_batches=1"], "2 epochs, 2 steps"),
        (
            ["trainer.max_steps=1", "trainer.limit_train_batches=3", "trainer.accumulate_grad_batches=2"],
            "1 of the 2 steps of an epoch",
        ),
    ],
)
def test_the_end_says_how_long_a_run_was(train: Train, printed: Printed, overrides: list[str], length: str) -> None:
    train("callbacks=minimal", "logger=csv", *overrides)
    (line,) = (line for line in printed() if line.startswith("Done: "))
    assert line.startswith(f"Done: {length}, ")
    (model,) = (line for line in printed() if line.startswith("model "))
    assert re.match(r"model   \d\d,\d\d\d parameters: ", model)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["seed=many"], "seed=many: must be a whole number, such as 10."),
        (["model.drop_rate=some"], "model.drop_rate=some: must be a number, such as 0.1."),
        (["seed=${nothing}"], "seed refers to ${nothing}, which does not exist. --cfg job shows all settings."),
    ],
)
def test_settings_from_python_are_refused_in_the_same_words(overrides: list[str], problem: str) -> None:
    with pytest.raises(UserError) as caught:
        load_settings(*overrides)
    assert caught.value.problems == [problem]


def test_one_thing_is_not_counted_as_several(tmp_path: Path) -> None:
    (tmp_path / "gone.txt").symlink_to("nowhere.txt")
    with pytest.raises(UserError, match=r"is a link to a missing file, whose text .* Restore the file, or delete the link\.$"):
        match_files(str(tmp_path))
    torch.save({"odd": torch.zeros(2)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"1 tensor is named 'odd'\.$"):
        load_pretrained(tmp_path / "x.pt")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(UserError, match=r"list\.pt holds an array, not a dict of tensors\.$"):
        load_pretrained(tmp_path / "list.pt")


def test_json_is_refused_without_words_of_python(tmp_path: Path) -> None:
    for content, problem in ((b"[" * 100_000, "nested too deeply"), (b'{"a": "\xff"}', "not UTF-8")):
        with pytest.raises(DamagedFileError) as caught:
            parse_json(content)
        assert str(caught.value) == f"it cannot be read as JSON (it is {problem})"

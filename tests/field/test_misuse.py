"""Commands that ask for something else than their user means: refused before anything is trained."""

from __future__ import annotations

import json
import math
import re
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from omegaconf import OmegaConf
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread

import gpt_pretrain
from gpt_pretrain import load_settings
from gpt_pretrain.checkpoints.weights import Weights
from gpt_pretrain.commands.command_line.command_words import sort_arguments
from gpt_pretrain.commands.command_line.hydra_arguments import apply_resume, check_arguments
from gpt_pretrain.commands.command_line.stored_overrides import admit_overrides
from gpt_pretrain.commands.run_folder_check import CheckRunFolder
from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.errors import UserError
from gpt_pretrain.generation.config import SamplerConfig
from gpt_pretrain.generation.sampling import sample_next
from gpt_pretrain.runs.metadata import METADATA_FILE
from gpt_pretrain.runs.tensorboard import _print_thread_error
from gpt_pretrain.sweeps.folder import SWEEP_SETTINGS
from gpt_pretrain.sweeps.search import NumberRange, Search
from gpt_pretrain.system.formatting import format_rounded
from gpt_pretrain.tokenizers.byte import ByteTokenizer
from gpt_pretrain.tokenizers.fitting import TooManyTokensError
from gpt_pretrain.training.callbacks.save import SaveRun
from gpt_pretrain.training.planning.check_context import CheckContext
from gpt_pretrain.training.planning.unused_settings import unused_settings

Script = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-m", "run_dir=x", "seed=1,2"], "run_dir=x: all jobs of a sweep would share this folder. Type hydra.sweep.dir=x"),
        (["hydra.run.dir=null"], "hydra.run.dir=null: this folder is needed. Give a path, or leave out hydra.run.dir=null"),
        (["data.path="], "data.path= has no value. Give a path, or leave out data.path="),
        (["init_from=''"], "init_from='' has no value."),
        (["resume="], "resume= has no value."),
        (["hydra.run.dir="], "hydra.run.dir= has no value."),
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


@pytest.mark.parametrize(
    ("typed", "settings", "warning"),
    [
        ("resume_force", ["resume_force=true"], "resume_force=true has no effect without resume=."),
        ("weights", ["weights=ema"], "weights=ema has no effect without init_from=."),
        ("max_rollbacks", ["max_rollbacks=5"], "max_rollbacks=5 has no effect without on_nonfinite=rollback."),
        (
            "data.verify",
            ["data=text", "data.path=a.txt", "data.verify=true"],
            "data.verify=true has no effect without data=shards.",
        ),
        ("data.path", ["data=mixture", "data.path=a.txt"], "data.path=a.txt has no effect with data=mixture, which reads"),
        ("data.path", ["data=text", "data.path=a.txt"], None),
        (
            "data.remote.threads",
            ["data=shards", "data.path=corpus", "data.remote.threads=4"],
            "data.remote.threads=4 has no effect without token shards behind a URL.",
        ),
        ("data.remote.threads", ["data=shards", "data.path=s3://bucket/corpus", "data.remote.threads=4"], None),
        (
            "trainer.max_epochs",
            ["trainer.max_tokens=1000", "trainer.max_epochs=2"],
            "trainer.max_epochs=2 has no effect together with trainer.max_tokens, which replaces it.",
        ),
        ("trainer.max_epochs", ["trainer.max_epochs=2"], None),
        (
            "optimizer.momentum",
            ["optimizer=adamw", "optimizer.momentum=0.8"],
            "optimizer.momentum=0.8 has no effect with optimizer=adamw, whose averages optimizer.betas sets.",
        ),
        ("optimizer.momentum", ["optimizer=muon", "optimizer.momentum=0.8"], None),
        (
            "start_context",
            ["callbacks=minimal", "start_context=a"],
            "start_context=a has no effect with callbacks.samples=false.",
        ),
        ("max_rollbacks", ["on_nonfinite=rollback", "max_rollbacks=5"], None),
    ],
)
def test_a_typed_setting_that_is_not_used_is_a_warning(typed: str, settings: list[str], warning: str | None) -> None:
    context = CheckContext(load_settings(*settings), mock.Mock(), mock.Mock(), mock.Mock(), overridden={typed})
    found = unused_settings(context)
    assert found is None if warning is None else found is not None and found.startswith(warning)


def test_a_full_disk_is_explained_once_and_without_a_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoints"
    save, other = (
        SaveRun(mock.Mock(), folder=folder, settings=mock.Mock(), tokenizer=ByteTokenizer(), config={}) for _ in range(2)
    )
    for step in (2, 5, 5):
        save._warn_not_written(step, "No space left on device")
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [
        f"The checkpoint of step 2, or a copy of it, could not be written to {folder}",
        "The checkpoint of step 5 could not be written either",
    ]
    assert "(No space left on device). There is no earlier one, and training continues." in caplog.text
    folder.mkdir()
    (folder / "last.ckpt").touch()
    other._warn_not_written(7, "full")
    assert "(full). The previous one is kept, and training continues." in caplog.text
    writer = mock.create_autospec(_AsyncWriterThread, instance=True)
    _print_thread_error(threading.ExceptHookArgs((OSError, OSError(28, "full"), None, writer)))
    assert capsys.readouterr().err == ""


def test_a_message_counts_in_words(tmp_path: Path) -> None:
    """One window is no plural, and a stride beyond the window is named as the cause of few windows."""
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 60)
    settings = load_settings("data=text", f"data.path='{text}'", f"data.cache_dir='{tmp_path}'", "data.stride=100000").data
    with pytest.raises(UserError) as caught:
        TextDataModule(settings, ByteTokenizer(), context_length=16, seed=1).prepare_data()
    assert str(caught.value) == (
        "data.batch_size=2: the training set has only 1 window of 16 tokens. Choose data.stride=null (100000 now), or "
        "data.batch_size=1 or less, a shorter model.context_length, or more text."
    )


@pytest.mark.parametrize(
    ("space", "problem"),
    [
        (NumberRange(1e-2, 1e-4), "its range begins at 0.01, above its end, 0.0001. Exchange the two bounds."),
        (NumberRange(0, 1, log=True), "a logarithmic range must begin above 0, and it begins at 0."),
        (NumberRange(0, math.inf), "the bounds of its range must be finite numbers."),
    ],
    ids=["exchanged", "logarithm_of_zero", "infinite"],
)
def test_a_range_that_a_search_cannot_draw_from_is_explained(tmp_path: Path, space: NumberRange, problem: str) -> None:
    with pytest.raises(UserError, match=f"optimizer.lr: {re.escape(problem)}"):
        Search.open(tmp_path, {"optimizer.lr": space}, sampler="random", seed=1, pruning=False, pruning_after=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "text"), [(183.3, "180"), (1843, "1,800"), (0.04812, "0.048"), (2.0, "2"), (99.6, "100"), (1e-7, "1e-07")]
)
def test_amounts_are_rounded_without_an_exponent(value: float, text: str) -> None:
    assert format_rounded(value) == text


def test_a_replaced_list_of_a_sweep_is_said(tmp_path: Path) -> None:
    stored = {"hydra": [], "task": ["optimizer.lr=1e-3,1e-2", "seed=1,2"]}
    (tmp_path / SWEEP_SETTINGS).write_text(json.dumps({"hydra": {"overrides": stored, "job": {"name": "train"}}}))
    admitted = admit_overrides(tmp_path, script="train", typed={"optimizer.lr"})
    assert admitted.notices == [
        "What you type for optimizer.lr replaces optimizer.lr=1e-3,1e-2, also when this sweep is resumed again."
    ]


@pytest.mark.parametrize("words", [["checkpoint", "=", "base"], ["checkpoint", "=base"], ["checkpoint=", "base"]])
def test_blanks_around_an_equals_sign_are_explained(words: list[str]) -> None:
    with pytest.raises(UserError, match=r"without spaces around its equals sign. Type checkpoint=base"):
        check_arguments(sort_arguments(words), script="generate")


def test_the_tokenizer_of_a_run_is_advised_in_place_of_another(tmp_path: Path) -> None:
    weights = mock.Mock(spec=Weights)
    weights._fit.side_effect = TooManyTokensError("The model has 257 tokens, but the tokenizer gpt2 has 50,257")
    with pytest.raises(UserError, match=r"The weights bring their own tokenizer: leave out tokenizer=byte$"):
        Weights._fit_named(weights, "byte")
    weights.own_tokenizer = None
    with pytest.raises(UserError, match=r"Give the tokenizer that it was trained with: tokenizer=NAME$"):
        Weights._fit_named(weights, "byte")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["experiment=null"], "experiment=null: null is not an option of the group experiment. Leave it out, or choose from"),
        (["model=null"], "model=null: null is not an option of the group model. Leave it out, or choose from"),
        (["~optimizer.lr"], "~optimizer.lr: a setting cannot be removed. Leave it out to have its default."),
        (["~trainer"], "~trainer: a run needs this group. Leave this out to have its default, or choose from cpu, ddp, "),
        (["~data"], "~data: a run needs this group. Leave this out to have its default, or choose from custom, mixture, "),
        (["~model"], "~model: a run needs this group. Leave this out to have its default, or choose from chapter5, "),
        (["-p", "hello"], "-p selects a part of the settings for --cfg, and has no effect without it."),
        (["--cfg"], "--cfg: must be job, hydra or all."),
        (["--resolve"], "--resolve has no effect without --cfg."),
        (["=base"], "=base: the name of the setting is missing. Settings are written as name=value."),
        (["seed=1", "optimizer.lr", "1e-3"], "is written with an equals sign. Type optimizer.lr=1e-3"),
        (["seed=1", "optimizer.lr:1e-3"], "is written with an equals sign. Type optimizer.lr=1e-3"),
        (["seed=1", "lr:", "1e-3"], "is written with an equals sign. Type optimizer.lr=1e-3"),
        (["seed=1", "export"], "export: this setting has no value. Type export=true"),
        (["seed=1", "2"], 'several values of a setting are written as one word. Type "seed=1,2"'),
        (["start_context=the", "seed"], 'a text with spaces needs quotation marks. Type "start_context=the seed"'),
        (["--lr", "1e-3"], "settings are written without dashes. Type optimizer.lr=1e-3"),
        (["--export"], "settings are written without dashes. Type export=true"),
        (["-m", "optimizer.lr={1e-3,1e-4}"], "must be a number, such as 0.1. To try several values: -m optimizer.lr=1e-3,1e-4"),
        (["-m", "optimizer.lr=[1e-3, 1e-4]"], "must be a number, such as 0.1. To try several values: -m optimizer.lr=1e-3,1e-4"),
        (["-m", "hydra.run.dir=x"], "hydra.run.dir=x has no effect in a sweep (-m). Type hydra.sweep.dir=x"),
        (
            ["callbacks.custom.t={_target_:", "my.Class}"],
            "a list or a mapping with spaces needs quotation marks. Type 'callbacks.custom.t={_target_: my.Class}'",
        ),
        (["optimizer.betas=[0.9,", "0.95]"], "needs quotation marks. Type 'optimizer.betas=[0.9, 0.95]'"),
        (["data.path=C:\\Users\\me\\a b.txt"], "this is a Windows path. In WSL, type 'data.path=/mnt/c/Users/me/a b.txt'"),
        (["data.path=d:/text.txt"], "this is a Windows path. In WSL, type data.path=/mnt/d/text.txt"),
    ],
)
def test_words_that_are_no_settings_are_explained(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_arguments(sort_arguments(words), script="train")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run_dir=text.txt"], "text.txt: this folder cannot be written (File exists). Choose another one with hydra.run.dir="),
        (
            ["-m", "hydra/launcher=slurm", "seed=1,2"],
            "hydra/launcher=slurm: the group hydra/launcher has no option slurm. Its options are basic, ",
        ),
        (["--config-dir=nowhere"], "nowhere: there is no such folder."),
        (["~nothing"], "~nothing: there is no such setting. --cfg job shows all settings."),
        (
            ["hydra.job_logging.root.level=LOUD"],
            "hydra.job_logging: Unknown level: 'LOUD'. conf/hydra/job_logging/ has settings that",
        ),
        (["seed=${nowhere}"], "seed refers to ${nowhere}, which does not exist. --cfg job shows all settings."),
        (["-m", "hydra.sweep.dir=run", "seed=1,2"], "run holds a run, so it cannot hold a sweep as well."),
    ],
    ids=[
        "file_as_folder",
        "unknown_launcher",
        "no_folder",
        "removed_nothing",
        "unknown_level_of_logs",
        "reference_to_nothing",
        "sweep_in_a_run",
    ],
)
def test_what_hydra_would_end_with_a_traceback_is_a_message(
    script: Script, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "text.txt").write_text("some")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "last.ckpt").touch()
    done = script("train.py", "tokenizer=byte", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr and "provider=" not in done.stderr


def test_a_folder_that_cannot_be_listed_holds_no_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoints").symlink_to("checkpoints")
    with pytest.raises(SystemExit) as ended:
        CheckRunFolder().on_multirun_start(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    assert ended.value.code == 2
    said = (
        f"{tmp_path}/checkpoints cannot be read (Too many levels of symbolic links). Choose another folder with hydra.sweep.dir="
    )
    assert said in capsys.readouterr().err


def test_the_version_is_that_of_this_program(script: Script) -> None:
    assert script("generate.py", "--version").stdout == f"gpt-pretrain {gpt_pretrain.__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--experimental-rerun", "their/config.pickle"], "--experimental-rerun is not allowed: Hydra unpickles the file"),
        (["data.text_field=#a"], """These characters need quotation marks: "data.text_field='#a'\""""),
        (["budget=½m"], "budget=½m: must be a number with a unit, such as budget=20m"),
        (["optimizer.lr=1,5e-3"], "A decimal fraction is typed with a point: optimizer.lr=1.5e-3"),
        (
            ["nonsense=1", "callbacks.custom.x=1"],
            "callbacks.custom.x: a callback is a mapping such as {_target_: package.Class}.",
        ),
        (
            ["nonsense=1", "data=mixture", "data.sources=[{path: a.txt, weight: -1}]"],
            "data.sources=[{path: a.txt, weight: -1.0}]: each weight must be above 0.",
        ),
    ],
)
def test_values_are_shown_as_they_are_typed(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_arguments(sort_arguments(words), script="train")
    assert message in str(caught.value)

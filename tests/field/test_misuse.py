"""Commands that ask for something else than their user means: refused before anything is trained."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import pytest
import torch
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread

from gpt_pretrain import load_settings
from gpt_pretrain.commands import generate
from gpt_pretrain.commands.command_words import sort_arguments
from gpt_pretrain.commands.hydra_arguments import apply_resume, check_arguments
from gpt_pretrain.config.schema import GenerateSettings, TrainerSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.generation.config import SamplerConfig
from gpt_pretrain.generation.sampling import sample_next
from gpt_pretrain.runs.metadata import METADATA_FILE
from gpt_pretrain.runs.tensorboard import _print_thread_error
from gpt_pretrain.tokenizers.byte import ByteTokenizer
from gpt_pretrain.training.callbacks.save import SaveRun
from gpt_pretrain.training.planning import measurements
from gpt_pretrain.training.planning.check_context import CheckContext
from gpt_pretrain.training.planning.unused_settings import unused_settings
from tests.conftest import ROOT


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


INTERRUPTED_IMPORT = """
import sys, time
from gpt_pretrain.system.interrupts import handle_interrupts
handle_interrupts()
try:
    import interrupted
    while True:
        time.sleep(1)
except KeyboardInterrupt:
    sys.exit(sys.modules["interrupted"].complete)
"""


def test_ctrl_c_waits_for_the_end_of_an_import(tmp_path: Path) -> None:
    (tmp_path / "interrupted.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\ncomplete = 5\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run([sys.executable, "-c", INTERRUPTED_IMPORT], env=os.environ | {"PYTHONPATH": path}, timeout=60)
    assert done.returncode == 5


def test_ctrl_c_ends_a_dry_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        interrupted = True

        def fit(self, *_args: object, **_kwargs: object) -> None:
            raise SystemExit(1)  # as Lightning does

    monkeypatch.setattr(measurements, "build_trainer", lambda *_args, **_kwargs: Interrupted())
    setup = mock.MagicMock()
    setup.settings.trainer = TrainerSettings()
    with pytest.raises(KeyboardInterrupt):
        measurements.measure_run(setup, mock.MagicMock(), checkpoint_bytes=1)


@pytest.mark.parametrize(
    ("typed", "settings", "warning"),
    [
        ("resume_force", ["resume_force=true"], "resume_force=true has no effect without resume=."),
        ("max_rollbacks", ["max_rollbacks=5"], "max_rollbacks=5 has no effect without on_nonfinite=rollback."),
        (
            "data.verify",
            ["data=text", "data.path=a.txt", "data.verify=true"],
            "data.verify=true has no effect without data=shards.",
        ),
        ("data.path", ["data=mixture", "data.path=a.txt"], "data.path=a.txt has no effect with data=mixture, which reads"),
        ("data.path", ["data=text", "data.path=a.txt"], None),
        ("max_rollbacks", ["on_nonfinite=rollback", "max_rollbacks=5"], None),
    ],
)
def test_a_typed_setting_that_is_not_used_is_a_warning(typed: str, settings: list[str], warning: str | None) -> None:
    context = CheckContext(load_settings(*settings), mock.Mock(), mock.Mock(), mock.Mock(), overridden={typed})
    found = unused_settings(context)
    assert found is None if warning is None else found is not None and found.startswith(warning)


@pytest.mark.parametrize(
    ("typed", "warning"),
    [
        (["prompt=a", "prompt_file=b.txt"], "prompt has no effect, since prompt_file=b.txt is the prompt."),
        (["prompt=a", "interactive=true"], "prompt has no effect, since interactive=true asks for prompts."),
        (["prompt_file=b.txt", "interactive=true"], "prompt_file has no effect, since interactive=true asks for prompts."),
        (["prompt=a"], None),
        (["prompt_file=b.txt"], None),
    ],
)
def test_a_prompt_that_another_setting_replaces_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, typed: list[str], warning: str | None
) -> None:
    pairs = dict(one.split("=") for one in typed)
    monkeypatch.setattr(generate, "overridden_keys", lambda: set(pairs))
    settings = GenerateSettings(prompt="a", prompt_file=pairs.get("prompt_file"), interactive="interactive" in pairs)
    assert generate._unused_prompts(settings) == warning


def test_a_full_disk_is_explained_once_and_without_a_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    save = SaveRun(mock.Mock(), folder=tmp_path, settings=mock.Mock(), tokenizer=ByteTokenizer(), config={})
    for step in (2, 5, 5):
        save._warn_not_written(step, "No space left on device")
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [
        f"The checkpoint of step 2, or a copy of it, could not be written to {tmp_path}",
        "The checkpoint of step 5 could not be written either",
    ]
    writer = mock.create_autospec(_AsyncWriterThread, instance=True)
    _print_thread_error(threading.ExceptHookArgs((OSError, OSError(28, "full"), None, writer)))
    assert capsys.readouterr().err == ""

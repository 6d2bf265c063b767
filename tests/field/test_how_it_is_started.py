"""Ways to start the program: links to its scripts and copies of them, modules by themselves, mistyped commands."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt_pretrain import errors
from gpt_pretrain.commands.command_line import flag_checks
from gpt_pretrain.commands.command_line.command_words import sort_arguments
from gpt_pretrain.commands.command_line.hydra_arguments import check_arguments
from gpt_pretrain.commands.main import run_command
from gpt_pretrain.commands.process import failures
from gpt_pretrain.errors import UserError
from gpt_pretrain.system import checkout
from gpt_pretrain.system.checkout import completion_hint, script_command
from tests.conftest import ROOT


def started(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", ["train.py", "my-training.py"])
def test_a_link_to_a_script_works_in_any_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(ROOT / "train.py")
    done = started(name, "--cfg", "all", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "\n    name: train\n" in done.stdout, "the log is train.log whatever the link is called"


def test_a_script_without_its_modules_says_which_python_has_them(tmp_path: Path) -> None:
    shutil.copy(ROOT / "train.py", tmp_path)
    done = started("-I", "-S", "train.py", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("train.py: No module named 'hydra'. Use the Python that has gpt-pretrain installed, such as")
    assert done.stderr.count("\n") == 1


def test_a_module_of_a_command_says_what_to_type(tmp_path: Path) -> None:
    for words in (["-m", "gpt_pretrain.commands.prepare"], [str(ROOT / "gpt_pretrain" / "commands" / "prepare.py")]):
        done = started(*words, "book.txt", folder=tmp_path)
        assert done.returncode == 1
        assert (
            done.stderr
            == "prepare.py is a part of gpt-pretrain and does nothing by itself. Type gpt-pretrain prepare and its settings.\n"
        )
    file = ROOT / "gpt_pretrain" / "commands" / "process" / "run_context.py"
    for words in (["-m", "gpt_pretrain.commands.process.run_context"], [str(file)]):
        done = started(*words, folder=tmp_path)
        assert done.stderr == "run_context.py is a part of gpt-pretrain and does nothing by itself. Type gpt-pretrain --help.\n"


@pytest.mark.parametrize(
    ("typed", "remedy"),
    [
        ("verify-resume", "Did you mean verify_resume?"),
        ("PREPARE", "Did you mean prepare?"),
        ("generate.py", "Did you mean generate?"),
        ("leaderbord", "Did you mean leaderboard?"),
        ("finetune", "Type gpt-pretrain train init_from=NAME data.path=FILE"),
        ("chat", "Type gpt-pretrain generate interactive=true"),
        ("xyzzy", "Choose from train, generate, "),
    ],
)
def test_a_mistyped_command_is_answered_with_the_nearest_one(typed: str, remedy: str) -> None:
    with pytest.raises(UserError) as caught:
        run_command([typed])
    assert str(caught.value).startswith(f"{typed}: there is no such command. {remedy}")


@pytest.mark.parametrize("word", ["help", "--help", "-h"])
def test_help_on_a_command_is_shown_in_either_order(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run_command([word, "compare"])
    assert capsys.readouterr().out.startswith("Plot the loss curves of runs over one another")
    run_command([word, "xyzzy"])
    assert capsys.readouterr().out.startswith("Usage: gpt-pretrain COMMAND")


@pytest.mark.parametrize(
    ("typed", "command"),
    [
        ("train.py", "python generate.py"),
        ("../train.py", "python ../generate.py"),
        ("my folder/evaluate.py", "python 'my folder/generate.py'"),
        ("", "python generate.py"),
        ("pytest", "python generate.py"),
    ],
)
def test_printed_commands_have_the_path_that_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, command: str
) -> None:
    for folder in ("here", "here/my folder"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "generate.py").touch()
    (tmp_path / "generate.py").touch()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(checkout, "_TYPED", Path(typed))
    assert script_command("generate.py") == command


def test_printed_commands_beside_a_single_link_have_the_path_of_the_source_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    monkeypatch.setattr(checkout, "_TYPED", tmp_path / "train.py")
    assert script_command("train.py") == f"python {tmp_path / 'train.py'}"
    assert script_command("generate.py") == f"python {ROOT / 'generate.py'}"


def test_a_command_prints_commands(tmp_path: Path) -> None:
    for words in (["-m", "gpt_pretrain"], [str(tmp_path / "gpt-pretrain")]):
        (tmp_path / "gpt-pretrain").write_text("from gpt_pretrain.__main__ import run\nrun()\n")
        done = started(*words, "train", "--help", folder=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "Usage: gpt-pretrain train [group=option ...]" in done.stdout


def test_completion_is_for_the_scripts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (["-sc"], ["-sc", "install=powershell"], ["-sc", "install=bash", "query=bash"]):
        with pytest.raises(UserError, match=r"-sc: name a shell, as in -sc install=bash, -sc install=zsh or -sc install=fish\."):
            check_arguments(sort_arguments(words), script="train")
    check_arguments(sort_arguments(["-sc", "install=bash"]), script="train")
    monkeypatch.setattr(flag_checks, "IS_COMMAND", True)
    monkeypatch.setattr(checkout, "IS_COMMAND", True)
    with pytest.raises(UserError, match=r'In the source folder, it completes python train\.py: eval "\$\(python train\.py -sc'):
        check_arguments(sort_arguments(["-sc", "install=bash"]), script="train")
    assert completion_hint("train.py").startswith("Shell completion in the source folder, for python train.py: eval ")


@pytest.mark.parametrize("script", ["train", "generate", "evaluate", "serve"])
@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--run", "--info", "all"], "--run and --info"),
        (["-r", "--cfg", "job"], "-r and --cfg"),
        (["--info", "-c", "job"], "-c and --info"),
        (["-sc", "install=bash", "--run"], "--run and -sc"),
    ],
)
def test_two_actions_at_once_are_refused(script: str, words: list[str], named: str) -> None:
    with pytest.raises(UserError, match=rf"^{named} cannot be combined\. Leave out one of them\.$"):
        check_arguments(sort_arguments(words), script=script)


def test_a_sweep_is_no_single_run() -> None:
    with pytest.raises(UserError, match=r"^--run and --multirun cannot be combined\."):
        check_arguments(sort_arguments(["--multirun", "--run", "seed=1,2"]), script="train")
    for words in (["--run"], ["--run", "--help"], ["-m", "seed=1,2"], ["--config-dir", "-m"]):
        check_arguments(sort_arguments(words), script="train")


def test_a_program_that_was_updated_while_it_runs_is_to_be_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ImportError("cannot import name 'new'", name="gpt_pretrain.errors", path=errors.__file__)
    monkeypatch.setattr(failures, "process_start", time.monotonic)
    assert failures.as_user_error(error) is None, "the file is older than the process"
    monkeypatch.setattr(failures, "process_start", lambda: time.monotonic() - time.time())
    said = f"{errors.__file__} has changed since this command started, as after git pull. Start the command again."
    assert str(failures.as_user_error(error)) == said
    assert failures.as_user_error(ImportError("cannot import name 'x'", name="json", path=json.__file__)) is None

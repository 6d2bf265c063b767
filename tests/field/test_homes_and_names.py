"""Home folders and the names of folders, files and jobs, as users have them."""

import json
import re
import unicodedata
from pathlib import Path

import pytest

from gpt_pretrain import load_settings
from gpt_pretrain.commands.command_line.hydra_arguments import to_hydra_arguments
from gpt_pretrain.config.free_text import expand_home
from gpt_pretrain.sweeps.folder import job_folder_name
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.terminal import open_console
from tests.helpers.user_machine import SHORT, Run, assert_trained


def test_names_that_begin_with_a_tilde_are_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/text.txt") == tmp_path / "text.txt"
    assert user_path("~$draft.txt") == Path("~$draft.txt")
    assert user_path("~nobody-of-that-name/text.txt") == Path("~nobody-of-that-name/text.txt")


@pytest.mark.parametrize("key", ["run_dir", "hydra.run.dir", "hydra.sweep.dir"])
def test_a_tilde_before_a_folder_is_the_home_folder(key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (written,) = {expand_home(f"{key}={typed}") for typed in ("~/my runs/a", "'~/my runs/a'", f"{tmp_path}/my runs/a")}
    assert written == f"{key}={tmp_path}/my runs/a"
    assert f"{key}='{tmp_path}/my runs/a'" in to_hydra_arguments([f"{key}=~/my runs/a"], script="train")
    assert expand_home(f"{key}=./~/a") == f"{key}=./~/a"
    assert expand_home(f"{key}=~/${{now:%Y}}") == f"{key}={tmp_path}/${{now:%Y}}"


def test_a_tilde_in_a_file_of_settings_and_from_python_is_the_home_folder(
    script: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    text, options = tmp_path / "home" / "text.txt", tmp_path / "own" / "experiment"
    for folder in (text.parent, options):
        folder.mkdir(parents=True)
    text.write_text("The quick brown fox. " * 600, encoding="utf-8")
    content = "# @package _global_\ndefaults:\n  - override /data: text\ndata: {path: ~/text.txt}\nrun_dir: ~/run\n"
    (options / "mine.yaml").write_text(content, encoding="utf-8")
    assert_trained(script("train.py", "--config-dir=own", "experiment=mine", *SHORT), tmp_path / "home" / "run")
    assert not (tmp_path / "~").exists()
    assert load_settings("run_dir=~/x").run_dir == str(tmp_path / "home" / "x")


@pytest.mark.parametrize(("group", "flags"), [("run", []), ("sweep", ["-m", "seed=1,2"])])
def test_a_tilde_for_hydra_in_a_file_of_settings_is_refused(
    script: Run, tmp_path: Path, group: str, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    content = f"# @package _global_\nhydra: {{{group}: {{dir: ~/x}}}}\n"
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(content, encoding="utf-8")
    done = script("train.py", "--config-dir=own", "experiment=mine", *flags)
    assert (done.returncode, done.stderr) == (
        2,
        f"error: hydra.{group}.dir=~/x: Hydra does not expand ~ in a file of settings. Write /home/someone/x there.\n",
    )
    assert not (tmp_path / "~").exists()


def test_a_run_needs_no_home_folder(run_after: Run, tmp_path: Path) -> None:
    before = "for name in ('HOME', 'XDG_CACHE_HOME', 'XDG_DATA_HOME'): os.environ.pop(name, None)\nimport pwd\n" + (
        "def nobody(*_): raise KeyError('unknown user')\npwd.getpwuid = pwd.getpwnam = nobody\n"
    )
    overrides = [override for override in SHORT if not override.startswith("data.cache_dir")]
    done = run_after(before, "train.py", *overrides, "hydra.run.dir=r")
    assert_trained(done, tmp_path / "r")
    assert "HOME is not set, and this user has no home folder" in done.stdout + done.stderr
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("name", ["caf\udce9", "\udcff"])
def test_a_folder_whose_name_is_not_utf8_is_refused(
    script: Run, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).mkdir()
    done = script("train.py", *SHORT, f"hydra.run.dir={name}")
    assert done.returncode == 2
    assert re.search(r"'hydra.run.dir=.*' is not UTF-8. Rename the file or folder", done.stderr)
    done = script("train.py", *SHORT, cwd=tmp_path / name)
    assert done.returncode == 2
    assert "error: The current folder '" in done.stderr


def test_files_whose_names_are_not_utf8_are_read(script: Run, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "caf\udce9.txt").write_text("The quick brown fox. " * 500)
    done = script("-m", "gpt_pretrain", "prepare", "texts", "out=corpus", "tokenizer=byte", "workers=1")
    assert done.returncode == 0, done.stderr
    source = json.loads((tmp_path / "corpus" / "manifest.json").read_text(encoding="utf-8"))["source"]
    assert [entry["path"] for entry in source] == ["texts/caf\udce9.txt"]
    assert_trained(script("train.py", *SHORT, "data=text", "data.path=texts", "hydra.run.dir=r"), tmp_path / "r")


def test_a_prompt_whose_bytes_are_utf8_is_decoded_and_any_other_is_refused(script: Run, trained: Path) -> None:
    done = script("generate.py", f"checkpoint={trained}", "prompt=\udce4\udcbb\udc8a", "sampler.max_new_tokens=1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("今")
    refused = script("generate.py", f"checkpoint={trained}", "prompt=caf\udce9", "sampler.max_new_tokens=1")
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: prompt=caf\\xe9 is not UTF-8 text. Set the terminal's encoding to UTF-8, and type it again.\n"
    )


def test_a_current_folder_that_was_deleted_is_a_message(run_after: Run, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    done = run_after("os.rmdir('../gone')", "train.py", *SHORT, cwd=tmp_path / "gone")
    assert done.returncode == 2
    assert done.stderr.startswith("error: The current folder cannot be used: No such file or directory.")


@pytest.mark.parametrize(
    "name", ["two\nlines 'and' \"quotes\"", "données/東京 😀", "a,b=c{d}[e]*?", "$HOME \\ # %20 & ;", "~tmp", "010"]
)
def test_folders_may_have_any_name(script: Run, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir(parents=True)
    (folder / "text.txt").write_text("The quick brown fox. " * 600)
    overrides = [f"data.path={name}/text.txt", f"data.cache_dir={name}/cache", f"hydra.run.dir={name}/run"]
    assert_trained(script("train.py", *SHORT, *overrides), folder / "run")
    assert (folder / "cache" / "tokens").is_dir()
    for command in (
        ["train.py", f"resume={name}/run", "trainer.max_epochs=2"],
        ["generate.py", f"checkpoint={name}/run", "sampler.max_new_tokens=1"],
        ["-m", "gpt_pretrain", "report", f"{name}/run"],
        ["-m", "gpt_pretrain", "prepare", f"{name}/text.txt", f"out={name}/corpus", "tokenizer=byte", "workers=1"],
    ):
        done = script(*command)
        assert done.returncode == 0, done.stderr
    assert (folder / "corpus" / "manifest.json").is_file()


def test_workers_start_where_the_folder_of_temporary_files_has_a_long_path(run_after: Run, tmp_path: Path) -> None:
    long = tmp_path / ("d" * 150)
    long.mkdir()
    before = f"import tempfile\ntempfile.tempdir = {str(long)!r}"
    assert_trained(run_after(before, "train.py", *SHORT, "data.num_workers=2", "hydra.run.dir=r"), tmp_path / "r")


@pytest.mark.parametrize(
    ("one", "other"), [("prompt=Once", "prompt=once"), ("prompt=É", "prompt=é"), ("prompt=é", "prompt=e\u0301")]
)
def test_jobs_have_folders_of_their_own_where_case_does_not_count(one: str, other: str) -> None:
    names = [unicodedata.normalize("NFC", job_folder_name([override])).casefold() for override in (one, other)]
    assert names[0] != names[1]
    assert job_folder_name(["optimizer.lr=1e-3", "seed=1"]) == "optimizer.lr=1e-3,seed=1"


def test_a_console_without_a_width_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    assert open_console().width == 80


@pytest.mark.parametrize("override", ["resume={}", "sweep_resume={}", "hydra.run.dir={}", "init_from={}", "data.path={}"])
def test_names_that_are_too_long_are_a_message(script: Run, override: str) -> None:
    done = script("train.py", *SHORT, override.format("n" * 300))
    assert done.returncode == 2
    assert "File name too long" in done.stderr.splitlines()[-1]

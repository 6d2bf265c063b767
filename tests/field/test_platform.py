"""Terminals, file systems, home folders and trackers as users have them."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from gpt_pretrain.config.schema import MlflowSettings, WandbSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.metadata import read_metadata
from gpt_pretrain.runs.tracking import mlflow_logger, wandb_logger
from gpt_pretrain.sweeps.folder import job_folder_name
from gpt_pretrain.system import files, measurements, signing
from gpt_pretrain.system.environment import check_environment, user_path
from gpt_pretrain.system.measurements import measured_once
from gpt_pretrain.system.terminal import open_console
from tests.conftest import ROOT, TINY_RUN
from tests.helpers.fork_server import ForkServer

Run = Callable[..., subprocess.CompletedProcess[str]]
Train = Callable[..., float]

SHORT = [*TINY_RUN, "trainer.max_epochs=1", "callbacks=minimal", "logger=csv", "data.cache_dir=cache"]
PRELUDE = """
import errno, io, os, runpy, sys
{before}
script = sys.argv[1]
sys.argv = sys.argv[1:]
sys.orig_argv = ["python", *sys.argv]
runpy.run_path(script, run_name="__main__")
"""
REFUSE = """
def refuse(*args, **kwargs):
    raise OSError(errno.{code}, os.strerror(errno.{code}))
{target} = refuse
"""


@pytest.fixture
def run_after(tmp_path: Path, fork_server: ForkServer, cache_dir: Path) -> Run:
    """Run an entry script as a process after some lines of Python, which stand for a user's machine."""

    def ran(
        before: str, name: str, *arguments: str, stdin: str | None = None, cwd: Path = tmp_path, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        prelude = tmp_path / "prelude.py"
        prelude.write_text(PRELUDE.format(before=before), encoding="utf-8")
        kept = {**os.environ, "XDG_CACHE_HOME": str(cache_dir), **environment}
        command = [str(prelude), str(ROOT / name), *arguments]
        return fork_server.run(command, cwd=cwd, environment=kept, stdin=stdin, timeout=100)

    return ran


@pytest.fixture
def trained(train: Train, tmp_path: Path) -> Path:
    """A finished run."""
    train("trainer.max_epochs=1", "callbacks=minimal", "logger=none")
    return tmp_path / "run"


def assert_trained(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert (folder / "checkpoints" / "best.ckpt").is_file()
    assert read_metadata(folder)["state"] == "finished"


# Streams


@pytest.mark.parametrize(
    ("encoding", "errors", "expected"),
    [
        ("ascii", "strict", rb"Gr\xfc\xdfe an \u6771\u4eac"),
        ("ascii", "surrogateescape", rb"Gr\xfc\xdfe an \u6771\u4eac"),
        ("cp1252", "strict", "Grüße an ".encode("cp1252") + rb"\u6771\u4eac"),
        ("latin-1", "strict", "Grüße an ".encode("latin-1") + rb"\u6771\u4eac"),
        ("gb18030", "strict", "Grüße an 東京".encode("gb18030")),
        ("utf-8", "strict", "Grüße an 東京".encode()),
    ],
)
def test_a_text_is_printed_in_any_encoding(
    run_after: Run, trained: Path, fork_server: ForkServer, tmp_path: Path, encoding: str, errors: str, expected: bytes
) -> None:
    before = f"sys.stdout.reconfigure(encoding={encoding!r}, errors={errors!r})\nsys.stdout = open('out', 'w', encoding={encoding!r}, errors={errors!r})"
    done = run_after(before, "generate.py", f"checkpoint={trained}", "prompt=Grüße an 東京", "sampler.max_new_tokens=2")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").read_bytes().startswith(expected)


def test_a_terminal_without_unicode_shows_all_lines_of_a_training(run_after: Run, tmp_path: Path) -> None:
    (tmp_path / "zh.txt").write_text("今天天气很好\n" * 400, encoding="utf-8")
    before = (
        "sys.stdout.reconfigure(encoding='ascii', errors='strict')\nsys.stderr.reconfigure(encoding='ascii', errors='strict')"
    )
    overrides = [*SHORT, "callbacks=default", "data.path=zh.txt", "start_context=今天", "hydra.run.dir=r", "trainer.max_steps=2"]
    done = run_after(before, "train.py", *overrides)
    assert_trained(done, tmp_path / "r")
    assert done.stdout.isascii()
    assert r"\u4eca\u5929" in done.stdout
    assert "Report page: r" in done.stdout.splitlines()[-1]
    assert "今天" in (tmp_path / "r" / "samples.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("closed", [[1], [1, 2], [0, 1, 2]])
@pytest.mark.parametrize("name", ["train.py", "generate.py"])
def test_streams_may_be_closed(run_after: Run, trained: Path, tmp_path: Path, name: str, closed: list[int]) -> None:
    streams = ["stdin", "stdout", "stderr"]
    before = "\n".join(f"os.close({number}); sys.{streams[number]} = None" for number in closed)
    if name == "train.py":
        assert_trained(run_after(before, name, *SHORT, "hydra.run.dir=r"), tmp_path / "r")
    else:
        done = run_after(before, name, f"checkpoint={trained}", "sampler.max_new_tokens=2")
        assert (done.returncode, done.stdout) == (2, "")  # Nobody has the text.
        assert 2 in closed or "Standard output is closed, so the result could not be printed." in done.stderr


@pytest.mark.parametrize("code", ["EPIPE", "ENOSPC", "EIO"])
def test_training_goes_on_when_its_output_cannot_be_written(run_after: Run, tmp_path: Path, code: str) -> None:
    done = run_after(broken_stdout(code), "train.py", *SHORT, "hydra.run.dir=r")
    assert_trained(done, tmp_path / "r")
    assert done.stderr.count("Standard output cannot be written any longer") == 1
    assert "Done: " in (tmp_path / "r" / "train.log").read_text(encoding="utf-8")


def test_generation_ends_with_its_reader_or_says_that_the_output_is_incomplete(run_after: Run, trained: Path) -> None:
    overrides = [f"checkpoint={trained}", "sampler.max_new_tokens=100000000"]
    done = run_after(broken_stdout("EPIPE"), "generate.py", *overrides)
    assert done.returncode == 0
    assert "rror" not in done.stderr
    done = run_after(broken_stdout("ENOSPC"), "generate.py", *overrides)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: Standard output cannot be written: No space left on device. What was printed is incomplete."
    )


def broken_stdout(code: str) -> str:
    """Return Python that has the write calls of standard output fail."""
    return f"""
class Broken(io.FileIO):
    def write(self, data):
        raise OSError(errno.{code}, os.strerror(errno.{code}))
sys.stdout = io.TextIOWrapper(io.BufferedWriter(Broken(os.dup(1), "w")), encoding="utf-8", write_through=True)
"""


def test_the_prompt_on_standard_input_is_utf8_whatever_the_locale_says(run_after: Run, trained: Path) -> None:
    before = "sys.stdin = open(0, encoding='ascii', closefd=False)"
    overrides = [f"checkpoint={trained}", "prompt=-", "sampler.max_new_tokens=1"]
    done = run_after(before, "generate.py", *overrides, stdin="Grüße an\r\n東京\r\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Grüße an\n東京")


# Operating and file systems


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("resume", "A resumed run continues in its own folder. Copy it first: cp -r {run} FOLDER, then resume=FOLDER."),
        ("hydra.run.dir", "Choose another one with hydra.run.dir=FOLDER."),
    ],
)
def test_a_run_folder_of_another_user_is_refused_with_what_helps(
    run_after: Run, trained: Path, override: str, remedy: str
) -> None:
    before = "import gpt_pretrain.commands.script" + REFUSE.format(
        code="EACCES", target="gpt_pretrain.commands.script.make_writable_folder"
    )
    done = run_after(before, "train.py", f"{override}={trained}")
    assert done.returncode == 2
    assert done.stderr == f"error: {trained}: this folder cannot be written (Permission denied). {remedy.format(run=trained)}\n"


def test_windows_is_refused_in_one_sentence_that_names_wsl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(UserError, match=r"Linux and macOS\. On Windows, run it in WSL"):
        check_environment()


NO_FOLDERS_AND_READ_ONLY_SYNCS = """
import fcntl
real_open, real_sync = os.open, os.fsync
def open_file(path, flags, *args, **kwargs):
    if os.path.isdir(path) and not flags & 3:
        raise PermissionError(13, "Permission denied", str(path))
    return real_open(path, flags, *args, **kwargs)
def sync(handle):
    if fcntl.fcntl(handle, fcntl.F_GETFL) & 3 == 0:
        raise OSError(9, "Bad file descriptor")
    return real_sync(handle)
os.open, os.fsync = open_file, sync
"""
NO_RENAME_OVER = """
real_rename = os.rename
def rename(source, target):
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "File exists", str(target))
    real_rename(source, target)
os.rename = os.replace = rename
"""
NO_FOLDER_RENAME = """
real_rename = os.rename
def rename(source, target):
    if os.path.isdir(source):
        raise OSError(errno.ENOSYS, "Function not implemented", str(source))
    real_rename(source, target)
os.rename = rename
"""
NO_MAPPING = """
import torch
real_load = torch.load
def load(*args, mmap=None, **kwargs):
    if mmap:
        raise RuntimeError("unable to mmap 1024 bytes from file <last.ckpt>: No such device (19)")
    return real_load(*args, **kwargs)
torch.load = load
"""
FILE_SYSTEMS = {
    "opens no folders and flushes only what is open for writing": NO_FOLDERS_AND_READ_ONLY_SYNCS,
    "flushes nothing": REFUSE.format(code="EINVAL", target="os.fsync"),
    "has no hard links": REFUSE.format(code="EPERM", target="os.link"),
    "has no permissions": REFUSE.format(code="EPERM", target="os.chmod = os.fchmod"),
    "renames over no file": NO_RENAME_OVER,
    "renames no folders, as gcsfuse": NO_FOLDER_RENAME,
    "maps no files into memory": NO_MAPPING,
    "has no locks (ENOLCK)": "import fcntl\n" + REFUSE.format(code="ENOLCK", target="fcntl.flock"),
    "has no locks (ENOSYS)": "import fcntl\n" + REFUSE.format(code="ENOSYS", target="fcntl.flock"),
    "has no locks (EOPNOTSUPP)": "import fcntl\n" + REFUSE.format(code="EOPNOTSUPP", target="fcntl.flock"),
    "has no locks (524)": "import fcntl\n" + REFUSE.replace("errno.{code}", "524").format(target="fcntl.flock"),
}


@pytest.mark.parametrize("before", FILE_SYSTEMS.values(), ids=FILE_SYSTEMS)
def test_a_run_trains_and_resumes_on_a_file_system_that(run_after: Run, tmp_path: Path, before: str) -> None:
    home = {"XDG_DATA_HOME": str(tmp_path / "data"), "XDG_CACHE_HOME": str(tmp_path / "user_cache")}
    overrides = [override for override in SHORT if not override.startswith("data.cache_dir")]
    assert_trained(run_after(before, "train.py", *overrides, "hydra.run.dir=r", **home), tmp_path / "r")
    done = run_after(before, "train.py", "resume=r", "trainer.max_epochs=2", **home)
    assert_trained(done, tmp_path / "r")
    assert read_metadata(tmp_path / "r")["result"]["steps"] == 6
    assert not list(tmp_path.rglob("*.tmp")) + list(tmp_path.rglob("*.old"))
    assert ("no locks" in done.stderr + done.stdout) == ("flock" in before)


def test_a_key_is_made_once_without_hard_links(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    signing._make_key(signing.key_file())
    key = signing.key_file().read_bytes()
    signing._make_key(signing.key_file())
    assert signing.key_file().read_bytes() == key
    assert [file.name for file in signing.key_file().parent.iterdir()] == ["signing.key"]


def test_a_disk_that_loses_data_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(_handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        files.write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"


WITHOUT_ROOTS_RIGHTS = """
import ctypes
header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert ctypes.CDLL(None).capset(header, data) == 0
"""


@pytest.fixture
def as_user(run_after: Run, tmp_path: Path) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Run a script in a folder that can be read but not written, also if root runs the tests."""
    other = 65534 if os.geteuid() == 0 else -1
    before = WITHOUT_ROOTS_RIGHTS if other >= 0 else ""

    def ran(name: str, *arguments: str, unreadable: Sequence[Path] = (), **environment: str) -> subprocess.CompletedProcess[str]:
        for path in [*tmp_path.rglob("*"), tmp_path]:
            if path.name != "prelude.py" and tmp_path / "home" not in (path, *path.parents):
                os.chown(path, other, -1)
                path.chmod(0o555 if path.is_dir() else 0o444)
        for path in unreadable:
            path.chmod(0)
        (tmp_path / "prelude.py").touch()
        return run_after(before, name, *arguments, **environment)

    (tmp_path / "prelude.py").write_text("")
    yield ran
    for path in [tmp_path, *tmp_path.rglob("*")]:
        path.chmod(0o755)


def test_the_folder_of_somebody_else_can_be_read(as_user: Run, trained: Path, tmp_path: Path) -> None:
    done = as_user("generate.py", f"checkpoint={trained}", "sampler.max_new_tokens=2")
    assert done.returncode == 0, done.stderr
    done = as_user("train.py", f"resume={trained}", "trainer.max_epochs=2")
    assert done.returncode == 2
    assert "this folder cannot be written (Permission denied)" in done.stderr
    done = as_user("train.py", *[override for override in SHORT if not override.startswith("data.cache_dir")], "plan=true")
    assert done.returncode == 2
    assert "so a run would save nothing" in done.stderr


def test_a_folder_that_cannot_be_listed_is_not_left_out(as_user: Run, tmp_path: Path) -> None:
    for name in ("a.txt", "secret/b.txt"):
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_text("The quick brown fox. " * 500)
    (tmp_path / "home").mkdir()
    secret = tmp_path / "texts" / "secret"
    overrides = ["data=text", "data.path=texts", "hydra.run.dir=home/r", "data.cache_dir=home/cache"]
    done = as_user("train.py", *SHORT, *overrides, unreadable=[secret])
    assert done.returncode == 2
    assert "texts/secret cannot be listed: Permission denied" in done.stderr
    done = as_user("train.py", *SHORT, *overrides, "data.path=texts/secret/b.txt", unreadable=[secret])
    assert done.returncode == 2
    assert "data.path=texts/secret/b.txt cannot be read: Permission denied" in done.stderr


# Homes and names


def test_names_that_begin_with_a_tilde_are_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/text.txt") == tmp_path / "text.txt"
    assert user_path("~$draft.txt") == Path("~$draft.txt")
    assert user_path("~nobody-of-that-name/text.txt") == Path("~nobody-of-that-name/text.txt")


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


# Measurements


def test_a_machine_is_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    speeds = iter([1.21, 1.19, 1.5])
    assert measured_once("product", lambda: next(speeds)) == 1.21
    assert measured_once("product", lambda: next(speeds)) == 1.21
    assert measured_once("another product", lambda: next(speeds)) == 1.19
    monkeypatch.setattr(measurements, "cpu_name", lambda: "another CPU")
    assert measured_once("product", lambda: next(speeds)) == 1.5


@pytest.mark.parametrize("content", ["{", "[1]", '{"product": "fast"}', "null"])
def test_a_damaged_measurement_is_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = tmp_path / "gpt-pretrain" / measurements.MEASUREMENTS
    file.parent.mkdir()
    file.write_text(content)
    assert measured_once("product", lambda: 1.25) == 1.25
    key = next(iter(json.loads(file.read_text())))
    for bad in (0, -1, "1", float("nan"), None):
        file.write_text(json.dumps({key: bad}))
        assert measured_once("product", lambda: 1.5) == 1.5


def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert measured_once("product", lambda: 1.5) == 1.5


# Trackers


class FakeLogger:
    """Stands for Lightning's loggers of Weights & Biases and MLflow."""

    made: list["FakeLogger"]

    def __init__(self, *, run_id: str | None = None, **arguments: object) -> None:
        self.arguments = arguments
        self.run_id = run_id or f"new-{len(self.made)}"
        self.experiment = None
        self.made.append(self)


@pytest.fixture
def trackers(monkeypatch: pytest.MonkeyPatch) -> type[FakeLogger]:
    """Replace the packages wandb and mlflow, whose store knows the runs in `known`."""

    class NotFound(Exception):
        error_code = "RESOURCE_DOES_NOT_EXIST"

    class Client:
        def __init__(self, uri: str) -> None:
            pass

        def get_run(self, identifier: str) -> object:
            if identifier not in [logger.run_id for logger in FakeLogger.made]:
                raise NotFound
            return SimpleNamespace(info=SimpleNamespace(lifecycle_stage="active"))

    FakeLogger.made = []
    wandb = ModuleType("wandb")
    wandb.run = None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", ModuleType("mlflow"))
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", SimpleNamespace(MlflowException=NotFound))
    monkeypatch.setitem(sys.modules, "mlflow.tracking", SimpleNamespace(MlflowClient=Client))
    monkeypatch.setattr("lightning.pytorch.loggers.WandbLogger", FakeLogger)
    monkeypatch.setattr("lightning.pytorch.loggers.MLFlowLogger", FakeLogger)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return FakeLogger


def test_weights_and_biases_continues_the_same_run(trackers: type[FakeLogger], tmp_path: Path) -> None:
    for _ in range(2):
        wandb_logger(WandbSettings(project="p"), run_dir=tmp_path)
    first, second = [logger.arguments for logger in trackers.made]
    assert first["id"] == second["id"] == read_metadata(tmp_path)["tracking"]["wandb"]
    assert second["resume"] == "allow"


def test_each_job_of_a_sweep_has_a_run_of_its_own(trackers: type[FakeLogger], tmp_path: Path) -> None:
    ended = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        wandb_logger(WandbSettings(project="p"), run_dir=tmp_path / name)
        sys.modules["wandb"].run = SimpleNamespace(id=trackers.made[-1].arguments["id"])  # type: ignore[attr-defined]
        sys.modules["wandb"].finish = lambda: ended.append(name)  # type: ignore[attr-defined]  # noqa: B023
    assert trackers.made[0].arguments["id"] != trackers.made[1].arguments["id"]
    assert ended == ["b"]


def test_mlflow_continues_the_same_run_in_a_database(trackers: type[FakeLogger], tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy")
    folder = tmp_path / "é 'q' #1 %20"
    folder.mkdir()
    ids = [mlflow_logger(MlflowSettings("x"), run_dir=folder).run_id for _ in range(2)]
    assert ids[0] == ids[1] == read_metadata(folder)["tracking"]["mlflow"]
    uri = str(trackers.made[0].arguments["tracking_uri"])
    from sqlalchemy.engine import make_url

    assert make_url(uri).database == str(folder / "mlflow.db")


def test_mlflow_starts_a_new_run_where_it_has_none(trackers: type[FakeLogger], tmp_path: Path) -> None:
    mlflow_logger(MlflowSettings("x", "http://a"), run_dir=tmp_path)
    trackers.made.clear()
    trackers.made.append(FakeLogger(run_id="of somebody else"))
    mlflow_logger(MlflowSettings("x", "http://b"), run_dir=tmp_path)
    assert read_metadata(tmp_path)["tracking"]["mlflow"] == trackers.made[-1].run_id


def test_mlflow_keeps_the_files_of_an_earlier_version(
    trackers: type[FakeLogger], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    (tmp_path / "mlruns").mkdir()
    uri = (tmp_path / "mlruns").as_uri()
    with pytest.raises(UserError, match=re.escape(f"add: logger=mlflow logger.mlflow.tracking_uri={uri}. ")):
        mlflow_logger(MlflowSettings("x"), run_dir=tmp_path)
    mlflow_logger(MlflowSettings("x", uri), run_dir=tmp_path)
    assert trackers.made[0].arguments["tracking_uri"] == uri
    assert os.environ["MLFLOW_ALLOW_FILE_STORE"] == "true"


def test_a_tracker_that_cannot_be_reached_is_a_message(
    trackers: type[FakeLogger], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr("lightning.pytorch.loggers.WandbLogger", fail)
    with pytest.raises(UserError, match=r"logger=wandb cannot be used: no route to host\. Run wandb login"):
        wandb_logger(WandbSettings(project="p"), run_dir=tmp_path)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_the_packages_themselves_continue_a_run(train: Train, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    train("trainer.max_epochs=1", f"logger={name}")
    before = read_metadata(tmp_path / "run")["tracking"][name]
    train(f"resume='{tmp_path / 'run'}'", "trainer.max_epochs=2", f"logger={name}")
    assert read_metadata(tmp_path / "run")["tracking"][name] == before
    shutil.rmtree(tmp_path / "run")

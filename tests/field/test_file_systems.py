"""Operating and file systems as users have them: a run trains and resumes there, or a message says what helps."""

import errno
import io
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest

from gpt_pretrain.commands.process.failures import as_user_error
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.metadata import read_metadata
from gpt_pretrain.system import files, signing
from gpt_pretrain.system.environment import check_environment
from gpt_pretrain.system.terminal import LogFileHandler
from tests.helpers.user_machine import REFUSE, SHORT, Run, assert_trained


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
    before = "import gpt_pretrain.commands.run_folder_check" + REFUSE.format(
        code="EACCES", target="gpt_pretrain.commands.run_folder_check.make_writable_folder"
    )
    done = run_after(before, "train.py", f"{override}={trained}")
    assert done.returncode == 2
    assert done.stderr == f"error: {trained}: this folder cannot be written (Permission denied). {remedy.format(run=trained)}\n"


@pytest.mark.parametrize("name", ["train.log", "metrics.csv"])
def test_a_folder_in_place_of_a_file_of_a_run_is_a_message(script: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / "run" / name).mkdir(parents=True)
    done = script("train.py", *SHORT, "hydra.run.dir=run")
    assert "Traceback" not in done.stderr + done.stdout
    assert done.returncode == 2 and name in done.stderr, done.stdout


def test_python_without_assertions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "flags", SimpleNamespace(optimize=1))
    with pytest.raises(UserError, match=r"^Python leaves out assertions here, .* Unset PYTHONOPTIMIZE, or leave out -O\.$"):
        check_environment()


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


@pytest.mark.parametrize("name", ["ENOTCONN", "ETIMEDOUT", "EHOSTDOWN", "ESTALE", "EIO"])
def test_a_drive_that_does_not_answer_is_a_message(name: str) -> None:
    code = getattr(errno, name)
    reported = as_user_error(OSError(code, os.strerror(code), "/mnt/drive/a.txt"))
    said = f"/mnt/drive/a.txt cannot be opened, read or written: {os.strerror(code)}. Its drive does not work or does not answer."
    assert reported is not None
    assert reported.problems == [f"{said} Connect it again, then repeat the command."]


def test_an_error_without_a_code_is_not_one_of_a_drive() -> None:
    assert as_user_error(OSError("the answer of a server cannot be read")) is None, "some systems lack some of the codes"


def test_a_file_that_cannot_be_replaced_is_named_and_not_its_new_content() -> None:
    reported = as_user_error(OSError(errno.EBUSY, "Device or resource busy", ".metrics.csv.1.tmp", None, "run/metrics.csv"))
    assert reported is not None
    assert reported.problems == ["run/metrics.csv cannot be opened, read or written: Device or resource busy."]


def test_a_full_disk_is_a_message_with_the_file_that_was_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught, open("/dev/full", "w") as full:
        full.write("some")
    reported = as_user_error(caught.value)
    assert reported is not None
    said = "/dev/full cannot be opened, read or written: No space left on device."
    assert reported.problems == [f"{said} Free some space there, or choose another folder."]


def test_a_drive_that_fails_beside_a_file_in_memory_is_a_message() -> None:
    in_memory = io.TextIOWrapper(io.BytesIO())
    try:
        raise OSError(errno.EIO, "Input/output error")
    except OSError as error:
        reported = as_user_error(error)
    assert reported is not None and in_memory.buffer
    assert reported.problems[0].startswith("A file cannot be opened, read or written: Input/output error.")


def test_too_many_open_files_are_a_message_with_the_command_that_allows_more() -> None:
    reported = as_user_error(OSError(errno.EMFILE, "Too many open files", "a.txt"))
    assert reported is not None
    assert reported.problems[0].endswith(
        "Too many open files. The shell that starts the program allows more with: ulimit -n 4096"
    )


def test_a_log_that_cannot_be_written_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handler, log = LogFileHandler(str(tmp_path / "train.log")), logging.getLogger("a log on a full disk")
    log.addHandler(handler)
    handler.stream.close()
    handler.stream = open(os.devnull, "w")  # noqa: SIM115
    with patch.object(handler, "flush", side_effect=OSError(errno.ENOSPC, "No space left on device")):
        for number in range(3):
            log.warning("message %d", number)
    handler.stream.close()
    assert capsys.readouterr().err == (
        f"warning: {tmp_path}/train.log cannot be written (No space left on device). It will lack messages.\n"
    )


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

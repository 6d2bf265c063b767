"""Locks between processes."""

import errno
from pathlib import Path

import pytest
from filelock import FileLock

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.locks import lock, try_lock


def test_only_one_holds_a_lock(tmp_path: Path) -> None:
    with lock(tmp_path / "lock", problem="busy"):
        with try_lock(tmp_path / "lock") as held:
            assert not held
        with pytest.raises(UserError, match="busy"), lock(tmp_path / "lock", problem="busy"):
            pass
    with try_lock(tmp_path / "lock") as held:
        assert held


def fail_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: FileLock) -> None:
        raise error

    monkeypatch.setattr(FileLock, "acquire", fail)


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "no locks"), NotImplementedError()])
def test_without_locks_every_process_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    fail_with(error, monkeypatch)
    with try_lock(tmp_path / "lock") as held:
        assert held


def test_other_errors_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(OSError(errno.ENOSPC, "no space"), monkeypatch)
    with pytest.raises(OSError, match="no space"), try_lock(tmp_path / "lock"):
        pass

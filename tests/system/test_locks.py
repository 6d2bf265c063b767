"""Locks between processes."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

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


def fail_with(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", fail)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_every_process_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    fail_with(code, monkeypatch)
    with try_lock(tmp_path / "lock") as first, try_lock(tmp_path / "lock") as second:
        assert first and second


def test_other_errors_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(errno.EIO, monkeypatch)
    with pytest.raises(OSError, match="error"), try_lock(tmp_path / "lock"):
        pass

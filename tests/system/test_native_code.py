"""C files are compiled once, kept in the user's own folder, and not needed."""

import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt_pretrain.system import native_code
from gpt_pretrain.system.native_code import load_native_code

pytestmark = pytest.mark.skipif(sys.platform != "linux" or shutil.which("gcc") is None, reason="this needs Linux and gcc")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a C file, with an empty cache and nothing loaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load_native_code.cache_clear()
    file = tmp_path / "seven.c"
    file.write_text("int seven(void) { return 7; }\n", encoding="utf-8")
    yield file
    load_native_code.cache_clear()


def kept(source: Path) -> list[Path]:
    return sorted(source.parent.glob("cache/**/*.so"))


def test_a_file_is_compiled_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = load_native_code(source)
    assert library is not None
    assert library.seven() == 7
    assert len(kept(source)) == 1
    load_native_code.cache_clear()
    monkeypatch.setattr(native_code.subprocess, "run", lambda *args, **kwargs: pytest.fail("compiled again"))
    again = load_native_code(source)
    assert again is not None
    assert again.seven() == 7


def test_a_changed_file_is_compiled_again(source: Path) -> None:
    load_native_code(source)
    load_native_code.cache_clear()
    source.write_text("int seven(void) { return 8; }\n", encoding="utf-8")
    library = load_native_code(source)
    assert library is not None
    assert library.seven() == 8


def test_a_damaged_library_is_replaced(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:  # a library that has been loaded must not be written to
        patch.setattr(native_code.ctypes, "CDLL", lambda path: None)
        load_native_code(source)
    (file,) = kept(source)
    file.write_bytes(b"not a library")
    load_native_code.cache_clear()
    library = load_native_code(source)
    assert library is not None
    assert library.seven() == 7


def test_a_folder_that_others_can_write_to_is_not_used(source: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="gpt_pretrain")
    assert load_native_code(source) is not None
    kept(source)[0].parent.chmod(0o777)
    load_native_code.cache_clear()
    assert load_native_code(source) is None
    assert "can be written by others, so no code is loaded from it" in caplog.text


@pytest.mark.parametrize("problem", ["no compiler", "an error in the file", "no folder for the cache"])
def test_without_a_library_programs_go_on(source: Path, monkeypatch: pytest.MonkeyPatch, problem: str) -> None:
    if problem == "no compiler":
        monkeypatch.setenv("PATH", "")
    elif problem == "an error in the file":
        source.write_text("this is not C", encoding="utf-8")
    else:
        (source.parent / "cache").write_text("a file", encoding="utf-8")
    assert load_native_code(source) is None

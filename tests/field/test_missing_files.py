"""A path that names no file is explained by the way it was typed, in training and in a corpus alike."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from gpt_pretrain.data.sources import find_data_sources
from gpt_pretrain.errors import UserError
from gpt_pretrain.texts.inputs import find_input_files
from tests.helpers.corpora import cached_tokenizer
from tests.helpers.data_settings import data_settings


def messages(tmp_path: Path, name: str) -> list[str]:
    """Return what training and a corpus say about a path."""
    found = []
    with pytest.raises(UserError) as caught:
        find_data_sources(data_settings(tmp_path, name="text", path=name), cached_tokenizer("byte"))
    found.append(str(caught.value))
    with pytest.raises(UserError) as caught:
        find_input_files([name], out=tmp_path / "out")
    return [*found, str(caught.value)]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("-", "Standard input is not read: save the text to a file first."),
        ("C:\\data\\a b.txt", "This is a Windows path. In WSL, type '/mnt/c/data/a b.txt'"),
        ("$HOME/book.txt", "The shell has not replaced $HOME, as within single quotation marks."),
        ("${DATA}/book.txt", "The shell has not replaced ${DATA}, as within single quotation marks."),
        ("%USERPROFILE%/book.txt", "The shell has not replaced %USERPROFILE%"),
        ("~nobody-of-that-name/book.txt", "No home folder is known for ~nobody-of-that-name."),
        ("file:///data/my%20book.txt", "Type the path of the file without file: '/data/my book.txt'"),
        ("file:/data/book.txt", "Type the path of the file without file: /data/book.txt"),
        ("BOOK.TXT", "Did you mean book.txt?"),
        ("bok.txt", "Did you mean book.txt?"),
        ("'book.txt'", "Did you mean book.txt?"),
        ("book.txt ", "Did you mean book.txt?"),
        (unicodedata.normalize("NFD", "für/été.txt"), None),
        (unicodedata.normalize("NFC", "été.txt"), "Did you mean"),
    ],
)
def test_the_likely_reason_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, hint: str | None) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text("a")
    (tmp_path / unicodedata.normalize("NFD", "été.txt")).write_text("b")
    for message in messages(tmp_path, name):
        assert (hint in message) if hint else "Did you mean" not in message


def test_a_file_with_an_odd_name_is_read_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("-", "$HOME.txt", "C:\\a.txt", "%A%", "file:x"):
        (tmp_path / name).write_text("text")
        assert [file.path for file in find_input_files([name], out=tmp_path / "out")] == [name]

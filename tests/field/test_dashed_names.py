"""Files whose names begin with dashes are files wherever a command takes one."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt_pretrain.commands.prepare import prepare_command
from gpt_pretrain.commands.tokenizer import tokenizer_command
from gpt_pretrain.errors import UserError
from gpt_pretrain.texts.text import Text, find_text_files
from tests.helpers import corpora

TEXT = "The old lighthouse stood alone.\n"


@pytest.mark.parametrize("name", ["--two.txt", "-x.txt", "--out.txt"])
def test_a_name_with_dashes_is_a_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(TEXT * 40)
    prepare_command([name, "out=-c", "tokenizer=byte", "workers=1", "val_fraction=0"])
    assert corpora.texts(Path("-c"), "train") == [TEXT * 40]
    tokenizer_command([name, "out=--v", "vocab_size=260"])
    assert Path("--v/tokenizer.json").exists()
    assert "".join(Text(find_text_files(name)).pieces()) == TEXT * 40
    Path(name).rename(f"{name}.jsonl")
    with pytest.raises(UserError, match=rf"gpt-pretrain prepare \./{name}.jsonl out=corpus"):
        list(Text(find_text_files(f"{name}.jsonl")).pieces())


@pytest.mark.parametrize("command", [prepare_command, tokenizer_command])
def test_a_missing_file_with_dashes_is_named_as_it_was_typed(command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^--two.txt: there is no such setting or file\."):
        command(["--two.txt", "out=c"])

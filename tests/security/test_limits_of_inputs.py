"""Limits on JSON, patterns, tasks, prompts and archives: each refuses something of its own, so that none can be lost unnoticed."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.tasks.task_items import MAX_ITEM_CHARACTERS, read_own_item
from gpt_pretrain.generation import prompt_files
from gpt_pretrain.generation.prompt_files import read_prompts
from gpt_pretrain.system.files import open_emptied, open_for_append
from gpt_pretrain.system.json_files import read_json
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.texts.containers.archives import read_tar
from gpt_pretrain.tokenizers.patterns.syntax import MAX_PATTERN, UnknownSyntaxError, parse_pattern


def test_json_is_not_read_beyond_its_limit(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1}   ')
    assert read_json(tmp_path / "a.json", max_bytes=11) == {"a": 1}
    with pytest.raises(DamagedFileError, match="more than 10 bytes"):
        read_json(tmp_path / "a.json", max_bytes=10)


def test_a_pattern_is_short() -> None:
    parse_pattern("a" * MAX_PATTERN)
    with pytest.raises(UnknownSyntaxError, match="more than 10,000 characters"):
        parse_pattern("a" * (MAX_PATTERN + 1))


def test_a_pipe_is_not_written_to_even_if_somebody_reads_it(tmp_path: Path) -> None:
    """Opening a pipe that nobody reads fails by itself."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        for opened in (open_for_append, open_emptied):
            with pytest.raises(OSError, match="not a regular file"):
                opened(tmp_path / "pipe")
    finally:
        os.close(reader)


def test_the_texts_of_an_item_are_counted_with_a_context_for_each_choice() -> None:
    half = "x" * (MAX_ITEM_CHARACTERS // 2 - 1)
    read_own_item({"context": half, "choices": ["a", "b"], "label": 0}, line=1)
    with pytest.raises(ValueError, match=r"its texts have 2,097,153 characters .* may have at most 2,097,152"):
        read_own_item({"context": half, "choices": ["a", "bc"], "label": 0}, line=1)


def test_a_line_of_prompts_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_files, "MAX_LINE_BYTES", 10)
    (tmp_path / "p.txt").write_text("short\n" + "x" * 11 + "\n")
    with pytest.raises(UserError, match="line 2 has more than 10 bytes"):
        list(read_prompts(tmp_path / "p.txt", name="p.txt"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_member_that_is_no_file_has_no_content(kind: bytes) -> None:
    """With a damaged size, the headers of the files after it would be its content."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        member = tarfile.TarInfo("link")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
        text = tarfile.TarInfo("a.txt")
        text.size = 5
        archive.addfile(text, io.BytesIO(b"words"))
    data = bytearray(stream.getvalue())
    data[124:136] = b"00000000012\0"  # a size, which such a member does not have
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    found = [(name, b"".join(content)) for name, content in read_tar([bytes(data)])]
    assert found == [("a.txt", b"words")]

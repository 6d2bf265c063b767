"""Texts that are not UTF-8, of which a file may hold thousands: each file is looked at once, and only the first files."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from gpt_pretrain.prepare.tokenizing import encode_batch
from gpt_pretrain.system.recognition.file_recognition import recognize
from gpt_pretrain.texts import invalid_utf8
from gpt_pretrain.texts.chunks import ReadPosition, RejectedRecord
from gpt_pretrain.texts.inputs import CorpusInputs, stat_input_file
from gpt_pretrain.texts.reading import read_inputs
from gpt_pretrain.texts.records.record_text import InvalidRecordError, record_text
from gpt_pretrain.tokenizers.byte import ByteTokenizer
from tests.helpers.resource_limits import within

GERMAN = "Der Bär läuft über die Straße und sagt, daß es schön so grün ist. "


def rejected(*files: Path) -> list[RejectedRecord]:
    inputs = CorpusInputs([stat_input_file(str(file)) for file in files], None, "text", None, [], [])
    chunks = list(read_inputs(inputs, ByteTokenizer(), start=ReadPosition()))
    return encode_batch(chunks, "byte", "text").rejected


def test_a_file_of_many_documents_is_looked_at_once(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(f"{GERMAN}<|endoftext|>".encode("latin-1") * 3000)
    with within(2, 50):
        records = rejected(file)
    assert len(records) == 3000
    assert "near byte 5. It looks like CP1252, in which" in records[0].detail
    assert records[2999].detail.startswith("invalid continuation byte near byte ") and "CP1252" in records[2999].detail


def test_of_many_files_the_first_ones_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invalid_utf8, "MAX_EXPLAINED", 3)
    for number in range(5):
        (tmp_path / f"{number}.txt").write_bytes(GERMAN.encode("latin-1") * 3)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number in range(5):
            archive.add(tmp_path / f"{number}.txt", f"{number}.txt")
    for files in ([tmp_path / "a.tar"], [tmp_path / f"{number}.txt" for number in range(5)]):
        assert ["CP1252" in record.detail for record in rejected(*files)] == [True, True, True, False, False]


def test_a_name_that_is_given_twice_beside_a_long_number_is_found() -> None:
    record = b'{"text": "a", "more": {"text": 1}, "n": %s}'
    assert record_text(record % (b"1" * 5000), "text", is_json=True) == "a"
    with pytest.raises(InvalidRecordError, match="given twice"):
        record_text(b'{"text": "a", "text": "b", "n": %s}' % (b"1" * 5000), "text", is_json=True)


def test_nesting_that_is_only_just_read_is_no_accident() -> None:
    for depth in range(900, 1100):
        deep = b'{"text": "a", "more": ' + b'{"text": ' * depth + b"1" + b"}" * depth + b"}"
        try:
            assert record_text(deep, "text", is_json=True) == "a"
        except InvalidRecordError as error:
            assert error.detail == "it is nested too deeply"


@pytest.mark.parametrize("line_end", ["\r\n", "\n"])
def test_lines_that_look_like_the_headers_of_a_mail_are_looked_at_once(line_end: str) -> None:
    lines = ["Alice: hello", *[" and on"] * 10, "Bob: so long"] * 200
    talk = "".join(line + line_end for line in lines).encode()
    times = ("From a " + "00:00" * 12_000 + line_end + "x").encode()
    with within(0.5, 50):
        assert recognize("a.txt", talk).is_read and recognize("a.txt", times).is_read
    mail = f"Subject: a{line_end}X-Long: b{line_end}  c{line_end}Message-ID: <a@b>{line_end}{line_end}text".encode()
    assert "contains e-mails" in recognize("a.txt", mail).warning

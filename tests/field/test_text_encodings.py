"""Texts in every encoding: read, refused with the command that converts them, or read with a warning."""

import random
from pathlib import Path

import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.recognition.encodings import ControlCount, TextEncoding, detect_encoding
from gpt_pretrain.system.recognition.file_recognition import recognize
from tests.helpers.text_inputs import DOCUMENTS, PLAIN, check, in_corpus, in_training, lines


@pytest.mark.parametrize(
    "text", [PLAIN, "Привет, мир! Как дела?\n" * 50, "今天天气很好我们去公园\n" * 50, "한국어 문장입니다.\n" * 50, "Hi 😀!\n" * 9]
)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_text_is_read_in_every_unicode_encoding(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, encoding: str
) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    check(tmp_path / "a.txt", [text])
    assert encoding == "utf-8-sig" or encoding[:6].upper() in caplog.text


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "Grüße aus München, schöne Straße!\n"),
        ("cp1251", "Привет, мир! Как дела?\n"),
        ("gbk", "今天天气很好\uff0c我们去公园。\n"),
    ],
)
def test_text_in_an_old_encoding_is_refused_with_the_command_that_converts_it(tmp_path: Path, encoding: str, text: str) -> None:
    (tmp_path / "old.txt").write_bytes((text * 40).encode(encoding))
    for read in (in_training, lambda path: in_corpus(path, tmp_path / "out")):
        with pytest.raises(UserError) as caught:
            read(tmp_path / "old.txt")
        name = str(caught.value).partition("iconv -f ")[2].split()[0]
        assert (text * 40).encode(encoding).decode(name) == text * 40


WITHOUT_SPACES = {
    "Chinese": "这是一个没有标点的中文文本我们在公园里散步然后回家吃饭他说今天天气很好",
    "Japanese": "わたしはきょうこうえんにいきましたそしていえにかえりました",
    "Thai": "ฉันไปสวนสาธารณะเมื่อวานนี้และกลับบ้านไปกินข้าวกับครอบครัว",
    "Khmer": "ខ្ញុំទៅសួនច្បារហើយត្រឡប់មកផ្ទះវិញ",
    "Korean": "나는오늘공원에갔다가집에돌아와서밥을먹었다",
}


@pytest.mark.parametrize("language", WITHOUT_SPACES)
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_wide_text_needs_no_spaces_and_no_line_ends(tmp_path: Path, language: str, encoding: str) -> None:
    text = WITHOUT_SPACES[language] * 40
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    check(tmp_path / "a.txt", [text])


def test_other_bytes_are_not_taken_for_wide_text_without_spaces() -> None:
    generator = random.Random(5)
    for low, high, size in ((0, 1 << 16, 2), (0, 50257, 2), (0x4E00, 0x9FA5, 2), (-400, 400, 2), (0, 100_000, 4)):
        numbers = b"".join(generator.randrange(low, high).to_bytes(size, "little", signed=low < 0) for _ in range(4000))
        assert detect_encoding(numbers) is None or detect_encoding(numbers) == TextEncoding("utf-8")
    for encoding in ("gbk", "shift_jis", "tis-620", "euc-kr", "cp949"):
        text = "".join(text for text in WITHOUT_SPACES.values()).encode(encoding, errors="ignore")
        assert detect_encoding(text * 20) == TextEncoding("utf-8")


def test_a_short_table_with_control_characters_between_columns_is_not_read_as_utf_16() -> None:
    for rows in ("1\x01at shore was the it\n2\x01at moon shore two day\n", "1\x01day three it one\n2\x01two day a shore\n"):
        for text in (rows, f"id\x01text\n{rows}"):
            assert detect_encoding(text.encode()) in (None, TextEncoding("utf-8")), text


@pytest.mark.parametrize("where", ["after", "before", "between", "after UTF-16"])
def test_a_text_with_nuls_around_it_is_read_with_a_warning(tmp_path: Path, where: str, caplog: pytest.LogCaptureFixture) -> None:
    data, nuls = PLAIN.encode(), b"\0" * 60_000
    content = {"after": data + nuls, "before": nuls + data, "between": data.replace(b"\n", b"\0")}
    content["after UTF-16"] = PLAIN.encode("utf-16-le") + nuls
    (tmp_path / "a.txt").write_bytes(content[where])
    text = content[where].decode() if where in ("after", "before", "between") else PLAIN + "\0" * 30_000
    check(tmp_path / "a.txt", [text])
    assert "% of the text is NUL" in caplog.text
    assert recognize("a.txt", nuls).refusal("a.txt").startswith("a.txt is a file of NULs, not text. It was never filled.")


def test_byte_order_marks_of_joined_files_are_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("\ufeff" + PLAIN)
    check(tmp_path / "a.txt", [PLAIN])
    assert "byte order mark" not in caplog.text + capsys.readouterr().out
    (tmp_path / "b.txt").write_text(("\ufeff" + PLAIN) * 3)
    check(tmp_path / "b.txt", [PLAIN + ("\ufeff" + PLAIN) * 2])
    warning = "The text has 2 byte order marks (U+FEFF) after its beginning, as in files that were joined with cat."
    assert f"b.txt: {warning}" in caplog.text
    assert f"Warning: {warning}" in capsys.readouterr().out


def test_a_few_byte_order_marks_of_web_pages_are_no_warning() -> None:
    page = "\ufeff" + PLAIN
    for rest, warned in ((10**5, True), (10**7, False)):
        counted = ControlCount()
        counted.add((page + " " * rest).encode())
        assert bool(counted.warnings()) == warned


def test_many_control_characters_are_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ("word " * 20 + "\0") * 500
    (tmp_path / "a.txt").write_text(text)
    check(tmp_path / "a.txt", [text])
    assert "a.txt: 0.99% of the text is NUL, as in a file that was never filled" in caplog.text
    assert "Warning: 0.99% of the text is NUL" in capsys.readouterr().out


@pytest.mark.parametrize("appended", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("share", [1, 4, 40])
def test_utf_16_that_was_appended_to_another_text_makes_no_garbage(tmp_path: Path, appended: str, share: int) -> None:
    (tmp_path / "a.txt").write_bytes(PLAIN.encode() * 4 + PLAIN.encode(appended) * share)
    kind = recognize("a.txt", (tmp_path / "a.txt").read_bytes())
    assert kind.encoding is None or kind.encoding.name == "utf-8"
    if appended == "utf-16" and share > 1:
        with pytest.raises(UserError, match=r"text in two encodings\. Part of it is UTF-16, as Windows PowerShell"):
            in_training(tmp_path / "a.txt")


def test_a_mark_in_the_middle_of_concatenated_files_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines() + b"\xef\xbb\xbf" + lines())
    check(tmp_path / "a.jsonl", DOCUMENTS * 2)


def test_text_for_a_terminal_is_read_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "log.txt").write_text("\x1b[31mred\x1b[0m line\n" * 500)
    in_training(tmp_path / "log.txt")
    assert "the colors of a terminal" in caplog.text


def test_a_damaged_character_in_utf8_is_not_taken_for_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Grüße, 今天.\n".encode() * 50 + b"\xff more")
    with pytest.raises(UserError, match=r"invalid start byte near byte 850\).*The rest of the text is UTF-8.*iconv -c"):
        in_training(tmp_path / "a.txt")

"""Texts that an earlier conversion has damaged are valid UTF-8. They are read as they are, and a warning says what is wrong."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from gpt_pretrain.system.recognition.damaged_text import conversion_damage
from gpt_pretrain.texts.inputs import find_input_files
from gpt_pretrain.texts.text import Text, find_text_files

TEXTS = {
    "French": "L’été dernier, nous étions à la plage « déjà », où êtes-vous ? Ça va très bien, garçon, de Noël à l’été.\n",
    "German": "Die Größe der Straße ist für mich übermäßig groß; schöne Grüße aus Köln, „sagte“ er in Österreich.\n",
    "Russian": "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.\n",
    "Chinese": "今天天气很好\uff0c我们去公园。他说\uff1a你好\uff0c世界。这是一个很长的故事\uff0c没有空格。\n",
    "Polish": "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności. Zażółć gęślą jaźń.\n",
    "Vietnamese": "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi.\n",
    "Portuguese": "NÃO É ASSIM: A AÇÃO, A NAÇÃO, O CORAÇÃO E A PAIXÃO SÃO IGUAIS, À SOMBRA E À LUZ.\n",
    "typography": "“It’s late,” she said — and left… “Why?” “Because it’s 5 €, °C or ½ — that’s why.”\n",
}


def taken_for(text: str, encoding: str) -> str:
    """Return what becomes of UTF-8 in a program that takes it for another encoding, byte by byte."""
    return "".join(bytes([byte]).decode(encoding, errors="ignore") or chr(byte) for byte in text.encode())


@pytest.mark.parametrize("language", TEXTS)
def test_a_text_that_is_right_has_no_warning(language: str) -> None:
    assert conversion_damage((TEXTS[language] * 20).encode()) == ""


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "cp1251", "cp1250", "mac_roman", "cp850", "cp437"])
def test_utf8_that_was_taken_for_another_encoding_is_said(language: str, encoding: str) -> None:
    assert "as if UTF-8 had been taken for" in conversion_damage(taken_for(TEXTS[language] * 20, encoding).encode())


def test_the_command_undoes_the_mistake(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = TEXTS["German"] * 20
    (tmp_path / "a.txt").write_text(taken_for(text, "cp1252"))
    find_text_files(str(tmp_path / "a.txt"))
    (said,) = [record.getMessage() for record in caplog.records]
    assert " has Ã¶ where ö seems to be meant, as if UTF-8 had been taken for CP1252 (to undo that: iconv " in said
    command = said.partition("(to undo that: ")[2].removesuffix(").")
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert (tmp_path / "new.txt").read_text() == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TEXTS["French"].encode("cp1252").decode(errors="replace"), "has U+FFFD in place of "),
        (TEXTS["Russian"].encode("ascii", errors="replace").decode(), "consists largely of question marks"),
        (
            "It\x92s \x93quoted\x94 \x97 text of Windows, with one word more.\n",
            "has control characters in place of quotation marks",
        ),
    ],
    ids=["replaced", "question marks", "Latin-1"],
)
def test_letters_that_are_lost_are_said(text: str, said: str) -> None:
    assert conversion_damage((text * 20).encode()).startswith(said)
    assert conversion_damage((TEXTS["typography"] * 2000 + text).encode()) == "", "a single line in a long text"


def test_a_text_in_another_encoding_is_not_called_damaged() -> None:
    japanese = "吾輩は猫である。名前はまだ無い。どこで生れたか頓と見当がつかぬ。\n"
    assert conversion_damage((japanese * 20).encode("cp932")) == ""
    assert conversion_damage((japanese * 20).encode()[:1000]) == "", "the last character is incomplete"


@pytest.mark.parametrize(
    ("escaped", "text"),
    [
        ("Tom &amp; Jerry said &quot;hi&quot;: it&#39;s &eacute;t&eacute;.\n", 'Tom & Jerry said "hi": it\'s été.\n'),
        ("L=E2=80=99=C3=A9t=C3=A9 dernier, nous =C3=A9tions l=C3=A0.\n", "L’été dernier, nous étions là.\n"),
    ],
    ids=["HTML", "e-mail"],
)
def test_escapes_in_a_plain_text_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture, escaped: str, text: str) -> None:
    (tmp_path / "a.txt").write_text(escaped * 20)
    find_text_files(str(tmp_path / "a.txt"))
    (said,) = [record.getMessage() for record in caplog.records]
    assert " in place of letters (to undo that: python -c " in said
    subprocess.run(said.partition("(to undo that: ")[2].removesuffix(")."), shell=True, check=True, cwd=tmp_path)
    assert (tmp_path / "new.txt").read_text() == text * 20


def test_escapes_are_no_damage_in_json_and_few_of_them_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "\\u0412\\u0441\\u0435"}\n' * 20)
    (tmp_path / "b.txt").write_text("if (a=10 && b) { c=20; } // &amp; is &\n" + "x=10 y=FF z=C3; a && b;\n" * 200)
    assert len(find_text_files(str(tmp_path))) == 2
    assert not caplog.records
    (tmp_path / "c.txt").write_text("\\u0412\\u0441\\u0435 \\u0441\\u0447\\u0430\n" * 20)
    find_text_files(str(tmp_path / "c.txt"))
    assert "c.txt has escapes such as \\u0412 in place of letters." in caplog.text


def test_many_files_are_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02}.txt").write_text(taken_for(TEXTS["German"] * 20, "cp1252"))
    assert len(find_input_files([str(folder)], out=tmp_path / "out")) == 30
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"{folder}/00.txt (and 29 more files like it) has Ã¶ where ö seems to be meant")


def test_a_member_of_an_archive_has_its_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", taken_for(TEXTS["German"] * 20, "cp1252"))
        archive.writestr("b.txt", (TEXTS["German"] * 20).encode("utf-16"))
    "".join(Text(find_text_files(str(tmp_path / "a.zip"))).pieces())
    assert f"{tmp_path}/a.zip/a.txt has Ã¶ where ö seems to be meant" in caplog.text
    assert "iconv -f UTF-8 -t CP1252 FILE > new.txt" in caplog.text
    assert f"{tmp_path}/a.zip/b.txt is read as UTF-16." in caplog.text

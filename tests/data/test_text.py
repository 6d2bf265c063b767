from pathlib import Path

import pytest

from gpt_pretrain.config.schema import DataSettings
from gpt_pretrain.data import text as settings_text
from gpt_pretrain.errors import UserError
from gpt_pretrain.texts import text as module
from gpt_pretrain.texts.text import Text, TextCounts


def find_text(name: str, *, path: str | None = None, cache_dir: Path) -> Text:
    return settings_text.find_text(DataSettings(name=name, path=path, url=None, sha256=None), cache_dir=cache_dir)


def whole(text: Text) -> str:
    return "".join(text.pieces())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "texts"
    (root / "sub").mkdir(parents=True)
    (root / ".hidden").mkdir()
    (root / "b.txt").write_text("bee", encoding="utf-8")
    (root / "a.txt").write_text("ay", encoding="utf-8")
    (root / "sub" / "c.md").write_text("sea", encoding="utf-8")
    (root / ".hidden" / "d.txt").write_text("no", encoding="utf-8")
    return root


def test_the_sample_story_is_part_of_the_package(tmp_path: Path, story: str) -> None:
    assert whole(find_text("sample", cache_dir=tmp_path)) == story
    assert 18_000 < len(story) < 23_000


def test_a_path_takes_precedence_over_the_name(folder: Path) -> None:
    assert whole(find_text("sample", path=str(folder / "a.txt"), cache_dir=folder)) == "ay"


@pytest.mark.parametrize(
    ("path", "expected"),
    [("", "ay<|endoftext|>bee<|endoftext|>sea"), ("*.txt", "ay<|endoftext|>bee"), ("**/*.md", "sea")],
)
def test_directories_and_globs_concatenate_their_files_in_order(folder: Path, path: str, expected: str) -> None:
    assert whole(find_text("text", path=str(folder / path), cache_dir=folder)) == expected


def test_long_texts_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE_CHARS", 5)
    (tmp_path / "x").write_text("äöüäöü日本語\r\nx", encoding="utf-8", newline="")
    pieces = list(Text((tmp_path / "x",)).pieces())
    assert max(map(len, pieces)) <= 5
    assert "".join(pieces) == "äöüäöü日本語\nx"


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbfhello")
    assert whole(Text((tmp_path / "x",))) == "hello"


def test_the_hash_depends_on_contents_and_file_boundaries(tmp_path: Path) -> None:
    hashes = set()
    for number, contents in enumerate([("ab",), ("a", "b"), ("b", "a"), ("", "ab"), ("ab", " ")]):
        files = []
        for index, content in enumerate(contents):
            files.append(tmp_path / f"{number}-{index}")
            files[-1].write_text(content)
        hashes.add(Text(tuple(files)).sha256())
    assert len(hashes) == 3, "a file without text does not count"


def test_bytes_that_are_not_utf8_are_reported_with_their_position(tmp_path: Path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes("naïve".encode() + b"\nna\xefve")
    with pytest.raises(UserError, match=r"latin\.txt is not UTF-8 text .* near byte 9\)"):
        whole(Text((file,)))


@pytest.mark.parametrize("path", ["missing.txt", "*.none", "empty"])
def test_a_path_without_files_is_rejected(tmp_path: Path, path: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"data\.path="):
        find_text("text", path=str(tmp_path / path), cache_dir=tmp_path)


def test_a_missing_relative_path_names_the_folder_in_which_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        find_text("text", path="text.txt", cache_dir=tmp_path)
    assert f"also those of a resumed run, start at the current folder, {tmp_path}. Give a file" in str(caught.value)
    with pytest.raises(UserError) as caught:
        find_text("text", path=str(tmp_path / "text.txt"), cache_dir=tmp_path)
    assert "current folder" not in str(caught.value)


def test_text_without_a_path_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data=text needs data\.path="):
        find_text("text", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "count"),
    [
        ("a.txt", "One.<|endoftext|> \n <|endoftext|>Two.<|endoftext|><|endoftext|>Three.", 2),
        ("a.txt", "<|endoftext|>One.<|endoftext|>Two.<|endoftext|>\n", 0),
        ("a.txt", "One.", 0),
        ("a.jsonl", '{"text": "One."}\n{"text": ""}\n{"text": " \\n"}\n{"text": "Two."}\n', 2),
    ],
)
def test_documents_without_text_are_counted(tmp_path: Path, name: str, content: str, count: int) -> None:
    (tmp_path / name).write_text(content)
    counts = TextCounts()
    assert list(Text((tmp_path / name,)).pieces(counts))
    assert counts.without_text == count

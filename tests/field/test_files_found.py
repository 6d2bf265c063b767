"""Training and a corpus read the same files: through links, in folders with odd names, and from any URL."""

import os
from pathlib import Path

import pytest

from gpt_pretrain.data.remote.download import download_name
from gpt_pretrain.errors import UserError
from gpt_pretrain.texts.finding import match_files
from gpt_pretrain.texts.inputs import find_input_files
from gpt_pretrain.texts.text import find_text_files


def found(pattern: Path | str, root: Path) -> list[str]:
    """Return the files, below a folder, that both ways of reading find."""
    in_training = [str(file) for file in find_text_files(str(pattern))]
    in_corpus = sorted(file.path for file in find_input_files([str(pattern)], out=root / "no corpus"))
    assert in_training == in_corpus
    return [os.path.relpath(file, root) for file in in_training]


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"The text of {name}.")


def test_links_to_files_and_folders_are_followed(tmp_path: Path) -> None:
    write(tmp_path, "corpus/a.txt", "disk/deep/b.txt", "disk/deep/deeper/c.txt", "disk/d.txt")
    (tmp_path / "corpus/more").symlink_to("../disk/deep")
    (tmp_path / "corpus/d.txt").symlink_to("../disk/d.txt")
    expected = ["corpus/a.txt", "corpus/d.txt", "corpus/more/b.txt", "corpus/more/deeper/c.txt"]
    assert found(tmp_path / "corpus", tmp_path) == expected
    assert found(tmp_path / "corpus/**/*.txt", tmp_path) == expected
    (tmp_path / "linked").symlink_to("corpus")
    assert len(found(tmp_path / "linked", tmp_path)) == 4


def test_a_folder_that_contains_nothing_but_a_link_is_read(tmp_path: Path) -> None:
    write(tmp_path, "disk/b.txt")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/more").symlink_to("../disk")
    assert found(tmp_path / "corpus", tmp_path) == ["corpus/more/b.txt"]


@pytest.mark.parametrize("pattern", ["corpus", "corpus/**", "corpus/**/*.txt", "cor*/**/*.txt"])
def test_links_in_circles_end(tmp_path: Path, pattern: str) -> None:
    write(tmp_path, "corpus/a/b.txt", "outside.txt")
    for name, target in {"self": ".", "again": ".", "up": "..", "a/top": "../..", "a/other": "../c", "c": "a"}.items():
        (tmp_path / "corpus" / name).symlink_to(target)
    assert found(tmp_path / pattern, tmp_path) == ["corpus/a/b.txt"]


def test_a_file_is_read_once_however_often_it_is_linked(tmp_path: Path) -> None:
    write(tmp_path, "corpus/real/a.txt")
    (tmp_path / "corpus/also.txt").symlink_to("real/a.txt")
    (tmp_path / "corpus/another").symlink_to("real")
    assert len(found(tmp_path / "corpus", tmp_path)) == len(found(tmp_path / "corpus/**/*.txt", tmp_path)) == 1


@pytest.mark.parametrize("pattern", ["corpus", "corpus/*.txt", "corpus/**/*.txt", "corpus/gone.txt"])
def test_a_link_that_leads_nowhere_is_reported(tmp_path: Path, pattern: str) -> None:
    write(tmp_path, "corpus/a.txt")
    (tmp_path / "corpus/gone.txt").symlink_to("/no/such/disk/gone.txt")
    for find in (lambda name: find_text_files(name), lambda name: find_input_files([name], out=tmp_path / "out")):
        with pytest.raises(UserError, match=r"gone\.txt is a link to a missing file"):
            find(str(tmp_path / pattern))


def test_a_folder_that_cannot_be_listed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "corpus/a.txt", "corpus/closed/b.txt")
    real = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for pattern in ("corpus", "corpus/**/*.txt"):
        with pytest.raises(UserError, match=r"closed cannot be listed: Permission denied"):
            match_files(str(tmp_path / pattern))


@pytest.mark.parametrize("folder", ["plain", "books [1]", "[v2]corpus[x]", "what?", "star*", "a[!b]c"])
@pytest.mark.parametrize("pattern", ["{}", "{}/*.txt", "{}/**/*.txt"])
def test_names_with_brackets_are_names(tmp_path: Path, folder: str, pattern: str) -> None:
    write(tmp_path, f"{folder}/book [1].txt", f"{folder}/book [2].txt", "books 1/wrong.txt", "starry/wrong.txt")
    assert found(tmp_path / pattern.format(folder), tmp_path) == [f"{folder}/book [1].txt", f"{folder}/book [2].txt"]
    assert found(tmp_path / folder / "book [1].txt", tmp_path) == [f"{folder}/book [1].txt"]
    assert found(tmp_path / folder / "book [[]*.txt", tmp_path) == [f"{folder}/book [1].txt", f"{folder}/book [2].txt"]
    assert found(tmp_path / folder / "book [1]*.txt", tmp_path) == [f"{folder}/book [1].txt"], "no class of characters fits"


def test_brackets_are_a_class_of_characters_where_that_matches(tmp_path: Path) -> None:
    write(tmp_path, "part1.txt", "part2.txt", "part3.txt", "part[12].md")
    assert found(tmp_path / "part[12].txt", tmp_path) == ["part1.txt", "part2.txt"]
    assert found(tmp_path / "part[12].md", tmp_path) == ["part[12].md"]


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, "c/a.txt", "c/.b.txt", "c/.git/c.txt", "c/d/.e/f.txt")
    assert found(tmp_path / "c", tmp_path) == found(tmp_path / "c/**", tmp_path) == ["c/a.txt"]


def test_a_glob_says_that_it_reads_no_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "c/a.txt", "c/d/b.txt")
    assert found(tmp_path / "c/*", tmp_path) == ["c/a.txt"]
    assert "also matches 1 folder, whose files are not read" in caplog.text


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://a.org/x/input.txt", "http://a.org/y/input.txt"),
        ("http://a.org/input.txt", "http://b.org/input.txt"),
        ("http://a.org/input.txt", "https://a.org/input.txt"),
        ("http://a.org/input.txt", "http://a.org:8080/input.txt"),
        ("http://a.org/input.txt?version=1", "http://a.org/input.txt?version=2"),
        ("http://a.org/get?sp=1", "http://a.org/get?sp=2"),
        ("http://a.org/get?st=1&se=2", "http://a.org/get?st=2&se=2"),
        ("http://a.org/get?skip=100", "http://a.org/get?skip=200"),
        ("http://a.org/get?policy=a", "http://a.org/get?policy=b"),
        ("http://a.org/get?expires=1", "http://a.org/get?expires=2"),
        ("http://a.org/get?sig=a", "http://a.org/get?sig=b"),
        ("http://a.org/get?1", "http://a.org/get?2"),
    ],
)
def test_different_urls_are_different_downloads(one: str, other: str) -> None:
    assert download_name(one) != download_name(other)


@pytest.mark.parametrize(
    "signed",
    [
        "X-Amz-Signature={0}&X-Amz-Date={0}&X-Amz-Expires=60",
        "X-Goog-Signature={0}&X-Goog-Date={0}",
        "Signature={0}&Expires={0}&AWSAccessKeyId=x",
        "Signature={0}&Policy={0}&Key-Pair-Id=x",
        "sv=1&sig={0}&se={0}&sp=r",
    ],
)
def test_two_signatures_of_one_url_are_one_download(signed: str) -> None:
    names = {download_name(f"http://a.org/input.txt?part=1&{signed.format(value)}") for value in ("a", "b")}
    assert len(names) == 1
    assert download_name(f"http://a.org/input.txt?part=2&{signed.format('a')}") not in names


def test_an_empty_name_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.txt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^'' names no input\. Give a file, a directory or a glob\.$"):
        find_input_files([""], out=tmp_path / "no corpus")

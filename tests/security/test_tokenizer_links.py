"""Folders of tokenizers from strangers: a private file that a link leads to does not become a vocabulary."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path

import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.tokenizers.formats.vocabulary_files import read_folder_tokenizer, read_tokenizer_file

WORDS = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"])
RANKS = "".join(f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256))
FILES = {"vocab.txt": WORDS, "own.tiktoken": RANKS}


@pytest.fixture(params=FILES)
def linked(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a file of a tokenizer that is a link to one elsewhere."""
    private = tmp_path / "private"
    private.write_text(FILES[request.param])
    path: Path = tmp_path / "theirs" / request.param
    path.parent.mkdir()
    path.symlink_to(private)
    return path


def test_a_link_out_of_the_folder_is_not_followed(linked: Path) -> None:
    with pytest.raises(UserError, match="it is a link that leads out of its folder"):
        read_folder_tokenizer(linked.parent)


def test_a_link_beside_a_typed_file_is_not_followed(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (tmp_path / "private").write_text('{"a": 5}')
    (theirs / "vocab.txt").write_text(WORDS)
    (theirs / "added_tokens.json").symlink_to(tmp_path / "private")
    with pytest.raises(UserError, match=r"added_tokens\.json .*it is a link that leads out of its folder"):
        read_tokenizer_file(theirs / "vocab.txt")


def test_a_cache_of_another_name_does_not_widen_the_folder(linked: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshots" / "model"
    snapshot.parent.mkdir()
    shutil.copytree(linked.parent, snapshot, symlinks=True)
    with pytest.raises(UserError, match="it is a link that leads out of its folder"):
        read_folder_tokenizer(snapshot)


def test_links_that_the_user_names_and_those_within_a_folder_or_the_hub_s_cache_are_followed(
    linked: Path, tmp_path: Path
) -> None:
    expected = read_tokenizer_file(linked).encode("abc")
    inside = tmp_path / "inside"
    (inside / "files").mkdir(parents=True)
    shutil.copy(linked, inside / "files" / "content")
    (inside / linked.name).symlink_to("files/content")
    cached = tmp_path / "models--x" / "snapshots" / "0123"
    cached.mkdir(parents=True)
    (tmp_path / "models--x" / "blobs").mkdir()
    shutil.copy(linked, tmp_path / "models--x" / "blobs" / "etag")
    (cached / linked.name).symlink_to("../../blobs/etag")
    for folder in (inside, cached):
        tokenizer = read_folder_tokenizer(folder)
        assert tokenizer is not None and tokenizer.encode("abc") == expected

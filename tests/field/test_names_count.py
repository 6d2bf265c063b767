"""Names and attributes that decide how the same bytes are read."""

import gzip
import io
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gpt_pretrain.data.files import LocalFiles
from gpt_pretrain.data.shards.numpy_shards import open_numpy
from gpt_pretrain.texts.containers.archives import read_zip
from gpt_pretrain.texts.containers.decompression import ContentLimit
from gpt_pretrain.texts.text import Text


def test_the_same_compressed_bytes_under_other_names_have_token_caches_of_their_own(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("t.csv.gz", "t.txt.gz", "u.txt.gz")]
    for file in files:
        file.write_bytes(gzip.compress(b"id,text\n1,One.\n2,Two.\n", mtime=0))
    table, text, same = (Text((file,)).sha256() for file in files)
    assert table != text == same


def test_a_symbolic_link_in_a_zip_archive_is_no_document() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.txt", "One.")
        link = zipfile.ZipInfo("b.txt")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "../a.txt")
    assert [name for name, _ in read_zip(stream, size=1000, limit=ContentLimit(1000))] == ["a.txt"]


@pytest.mark.parametrize("name", ["medieval.npy", "latest_1.npy", "contest_0.npy", "interval.npy"])
def test_a_word_inside_of_a_name_does_not_make_a_validation_set(tmp_path: Path, name: str) -> None:
    for file in (name, "web_val_000000.npy", "web_TEST1.npy"):
        np.save(tmp_path / file, np.arange(9, dtype=np.uint16))
    corpus = open_numpy(LocalFiles(tmp_path))
    assert [shard.name for shard in corpus.train.shards] == [name]
    assert corpus.val is not None and len(corpus.val.shards) == 2

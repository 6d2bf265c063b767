"""Long lists of files, shards and compressed parts, whose cost must not grow with a square of them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt_pretrain.data.files import LocalFiles, split_by_name
from gpt_pretrain.data.token_stream import ConcatenatedTokens, Shard
from gpt_pretrain.prepare.report import document_excerpt
from gpt_pretrain.texts.containers.blocks import read_stream
from gpt_pretrain.texts.containers.decompression import ContentLimit, decompress
from gpt_pretrain.texts.finding import files_below
from gpt_pretrain.tokenizers.byte import ByteTokenizer
from tests.helpers.resource_limits import within


def test_many_files_for_validation_are_found_in_linear_time() -> None:
    names = [f"test_{number}.npy" for number in range(20_000)]
    with within(0.5, 50):
        assert split_by_name([*names, "a.npy"]) == (["a.npy"], names)


def test_a_folder_under_many_links_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "texts" / "inner").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for name in ("texts/a.txt", "texts/inner/b.txt", "elsewhere/c.txt"):
        (tmp_path / name).write_text("text")
    (tmp_path / "texts" / "links").mkdir()
    for number in range(50):
        (tmp_path / "texts" / "links" / f"{number}").symlink_to("../inner")
        (tmp_path / "texts" / "links" / f"e{number}").symlink_to("../../elsewhere")
    walk, started = os.walk, list[str]()

    def counting(top: Path, **options: Any) -> Iterator[Any]:
        started.append(str(top))
        return walk(top, **options)

    monkeypatch.setattr(os, "walk", counting)
    assert sorted(file.name for file in files_below(tmp_path / "texts")) == ["a.txt", "b.txt", "c.txt"]
    assert len(started) == 2


def test_empty_shards_are_not_looked_at_for_each_window(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(np.arange(4, dtype="<u2").tobytes())
    one, none = (Shard(LocalFiles(tmp_path), "one", count, 2) for count in (4, 0))
    tokens = ConcatenatedTokens([one, *[none] * 100_000, one, none])
    with within(0.2, 50):
        assert [tokens.read(2, 4).tolist() for _ in range(50)] == [[2, 3, 0, 1]] * 50


def test_the_beginning_of_a_document_is_found_behind_many_empty_shards(tmp_path: Path) -> None:
    (tmp_path / "none").write_bytes(b"")
    (tmp_path / "one").write_bytes(np.frombuffer(b"text", np.uint8).astype("<u2").tobytes())
    (tmp_path / "starts").write_bytes(bytes(8))
    none: dict[str, Any] = {"file": "none", "starts": "none", "tokens": 0, "documents": 0}
    one = {"file": "one", "starts": "starts", "tokens": 4, "documents": 1}
    with within(0.5, 50):
        assert document_excerpt({"shards": [*[none] * 100_000, one]}, tmp_path, 0, ByteTokenizer(), 2) == "text ..."


def test_a_compressed_file_of_many_empty_ones_is_read_quickly() -> None:
    zstandard = pytest.importorskip("zstandard")
    empty, text = (zstandard.ZstdCompressor().compress(data) for data in (b"", b"text"))
    with within(0.3, 50):
        assert b"".join(decompress(read_stream(io.BytesIO(empty * 50_000 + text)), "zst", ContentLimit(0))) == b"text"

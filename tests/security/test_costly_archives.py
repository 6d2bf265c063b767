"""Archives in which a few bytes stand for much: many members, many fields of one, or content that is kept in memory."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from gpt_pretrain.texts.chunks import ReadPosition, RejectedRecord
from gpt_pretrain.texts.containers import decompression
from gpt_pretrain.texts.containers.archives import read_zip
from gpt_pretrain.texts.containers.contents import open_contents
from gpt_pretrain.texts.containers.decompression import (
    ALWAYS_READ,
    ContentLimit,
    DamagedArchiveError,
    PackedFileError,
    decompress,
)
from gpt_pretrain.texts.inputs import CorpusInputs, stat_input_file
from gpt_pretrain.texts.left_out import LeftOut
from gpt_pretrain.texts.reading import read_inputs
from gpt_pretrain.texts.recognition import recognize_file
from gpt_pretrain.tokenizers.byte import ByteTokenizer
from tests.field.test_packed_files import packed_as
from tests.helpers.resource_limits import within
from tests.security.test_costly_files import zip_with_members

MANY_FILES = "it contains too many files to be read as an archive"


def packed(content: bytes, copies: int = 1) -> bytes:
    """Return a zip archive with copies of a compressed member."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(copies):
            archive.writestr(f"{number}.zip", content)
    return stream.getvalue()


def count_members(data: bytes) -> int:
    left_out = LeftOut()
    return sum(1 for _ in open_contents("a.zip", io.BytesIO(data), size=len(data), left_out=left_out))


def test_the_members_of_archives_in_an_archive_are_counted_together() -> None:
    assert count_members(packed(zip_with_members(1000), 3)) == 3000
    many = packed(zip_with_members(12_000), 3)
    assert len(many) < 50_000
    with within(8, 100), pytest.raises(DamagedArchiveError, match=MANY_FILES):
        count_members(many)


def test_the_list_of_a_zip_archive_counts_since_its_fields_are_copied_for_each_other() -> None:
    fields = struct.pack("<HH", 2, 0) * 16_000
    entry = (
        b"PK\1\2" + struct.pack("<HHHHHHIIIHHHHHII", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, len(fields), 0, 0, 0, 0, 0) + b"a" + fields
    )
    data = entry * 20 + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 20, 20, 20 * len(entry), 0, 0)
    limit = ContentLimit(0)
    limit.take(ALWAYS_READ - 20 * len(data), "")
    assert len(list(read_zip(io.BytesIO(data), size=len(data), limit=limit))) == 20
    with within(0.1, 50), pytest.raises(DamagedArchiveError, match=MANY_FILES):
        list(read_zip(io.BytesIO(data), size=len(data), limit=limit))


def with_window(content: bytes, form: str, *, window: int) -> bytes:
    """Return compressed content, of which decompressing it keeps as many bytes in memory as its window has."""
    if form == "xz":
        return lzma.compress(content, filters=[{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": window}])
    parameters = zstandard.ZstdCompressionParameters(window_log=window.bit_length() - 1)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compressor.compress(content) + compressor.flush()


def contents_of_zip(archive: bytes, limit: ContentLimit) -> list[bytes]:
    return [b"".join(blocks) for _, blocks in read_zip(io.BytesIO(archive), size=len(archive), limit=limit)]


def with_limit(window: int) -> ContentLimit:
    limit = ContentLimit(0)
    limit.window = window
    return limit


@pytest.mark.parametrize(("form", "method"), [("xz", 95), ("zst", 93)])
def test_an_archive_keeps_no_more_content_in_memory_than_its_size_explains(form: str, method: int) -> None:
    content = b"a line of text\n" * 300_000
    large, small = (with_window(content, form, window=1 << bits) for bits in (22, 18))
    for data, window in ((small, 1 << 20), (large, 1 << 23)):
        assert b"".join(decompress([data], form, with_limit(window))) == content
    for size in (1, 7, 5000):  # The statement of the window may be divided.
        with pytest.raises(PackedFileError, match="far more memory than its size explains"):
            list(decompress([large[at : at + size] for at in range(0, len(large), size)], form, with_limit(1 << 20)))
    with pytest.raises(PackedFileError, match="far more memory than its size explains"):
        list(decompress([large], form, with_limit(1 << 23), layers=8))
    with pytest.raises(PackedFileError, match="far more memory than its size explains"):
        contents_of_zip(packed_as(large, content, method), with_limit(1 << 20))


def test_an_archive_of_zstd_that_states_a_large_window_is_read_if_its_content_is_small() -> None:
    data = with_window(b"text", "zst", window=1 << 31)
    assert b"".join(decompress([data], "zst", ContentLimit(len(data)))) == b"text"


def test_the_window_of_an_archive_grows_with_its_size() -> None:
    sizes = [ContentLimit(size).window for size in (0, 10_000_000, 50_000_000, 10_000_000_000)]
    assert sizes == [300_000_000, 320_000_000, 1_600_000_000, 1 << 31]


def shared(body: bytes, n_entries: int) -> bytes:
    """Return a zip archive with one member in bzip2 that its list names many times."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.txt", body)
    made = bytearray(stream.getvalue())
    start, end = made.index(b"PK\1\2"), made.index(b"PK\5\6")
    made[8], made[start + 10] = zipfile.ZIP_BZIP2, zipfile.ZIP_BZIP2
    made[start + 16 : start + 20] = struct.pack("<I", zlib.crc32(b"text"))
    entries = bytes(made[start:end]) * n_entries
    return bytes(made[:start]) + entries + b"PK\5\6" + struct.pack("<4H2IH", 0, 0, n_entries, n_entries, len(entries), start, 0)


def test_the_members_of_a_zip_archive_must_not_share_their_bytes() -> None:
    body = bz2.compress(b"") * 30_000 + bz2.compress(b"text")
    assert contents_of_zip(shared(body, 1), ContentLimit(0)) == [b"text"]
    with within(1, 50), pytest.raises(DamagedArchiveError, match="overlap"):
        contents_of_zip(shared(body, 100), ContentLimit(0))


@pytest.mark.parametrize(
    ("form", "pack"),
    [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", zstandard.ZstdCompressor().compress)],
)
def test_the_compressed_parts_of_a_file_count_even_if_they_are_empty(
    form: str, pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decompression, "ALWAYS_READ", 1 << 24)
    assert list(decompress([pack(b"") * 4000 + pack(b"text")], form, ContentLimit(0))) == [b"text"]
    with pytest.raises(DamagedArchiveError, match="more compressed parts than its size explains"):
        list(decompress([pack(b"") * 5000], form, ContentLimit(0)))


def test_a_file_is_not_decompressed_further_to_recognize_it_than_to_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decompression, "ALWAYS_READ", 1 << 24)
    zeros = bz2.compress(bytes(9_000_000))  # Zeros may follow the parts of a compressed file.
    (tmp_path / "a.txt.gz.bz2").write_bytes(bz2.compress(gzip.compress(b"")) + zeros * 2000)
    with within(2, 100):
        assert recognize_file(str(tmp_path / "a.txt.gz.bz2")).form == "bz2"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", b'"a"\n' * 30_000),
        ("a.jsonl", b'{"text":"a"}' * 9_000 + b"\n"),  # all on one line
        ("a.json", b'["a"' + b',""' * 30_000 + b"]"),
        ("a.csv", b"text,n\n" + b"a,1\n" * 30_000),
        ("a.txt", b"a<|endoftext|>" * 30_000),
        ("b.jsonl", b'{"text":"' + b"a<|endoftext|>" * 9_000 + b'"}\n'),
        ("c.jsonl", b'{"text":"' + b"a\\u003c|endoftext|>" * 9_000 + b'"}\n'),
        ("b.csv", b"text,n\n" + b"a<|endoftext|>" * 9_000 + b",1\n"),
    ],
)
def test_a_compressed_file_has_no_more_records_than_its_size_explains(
    name: str, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decompression, "ALWAYS_READ", 900_000)
    plain, packed = tmp_path / name, tmp_path / f"{name}.gz"
    plain.write_bytes(data)
    packed.write_bytes(gzip.compress(data))

    def last_record(path: Path) -> object:
        inputs = CorpusInputs([stat_input_file(str(path))], None, "text", None, [], [])
        return list(read_inputs(inputs, ByteTokenizer(), start=ReadPosition()))[-1].content

    assert not isinstance(last_record(plain), RejectedRecord)
    rejected = last_record(packed)
    assert isinstance(rejected, RejectedRecord) and "more records than its size explains" in rejected.detail

"""Archives: how their members may be compressed, and the formats that are refused by name, since they are not damaged."""

from __future__ import annotations

import io
import lzma
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from gpt_pretrain.errors import UserError
from gpt_pretrain.texts.containers.archives import read_zip
from gpt_pretrain.texts.containers.decompression import BLOCK, ContentLimit, DamagedArchiveError
from tests.helpers.text_inputs import PLAIN, in_corpus, in_training, zipped


def encrypted() -> bytes:
    """Return a zip archive whose only file is marked as encrypted, at its start and in the list of files."""
    content = bytearray(zipped({"a.txt": PLAIN.encode()}))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def with_method(archive: bytes, method: int) -> bytes:
    """Return a zip archive whose only file states another method of compression."""
    content = bytearray(archive)
    for mark, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        content[content.index(mark) + offset] = method
    return bytes(content)


def sparse() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:
        member = tarfile.TarInfo("a.txt")
        member.type = tarfile.GNUTYPE_SPARSE
        archive.addfile(member)
    return stream.getvalue()


def with_dictionary() -> bytes:
    samples = [f"{n} {PLAIN[:500]} {n * 7919}".encode() for n in range(300)]
    dictionary = zstandard.train_dictionary(1024, samples)
    return zstandard.ZstdCompressor(dict_data=dictionary).compress(PLAIN.encode())


def newer_sparse() -> bytes:
    """Return an archive of `tar --sparse --format=posix`, which describes the holes of a file in an extended header."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("GNUSparseFile.0/a.txt")
        member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a.txt"}
        archive.addfile(member)
    return stream.getvalue()


PACKED: dict[str, tuple[Callable[[], bytes], str]] = {
    "locked.zip": (encrypted, "a.txt is encrypted; unpack the archive first"),
    "rare.zip": (lambda: with_method(zipped({"a.txt": PLAIN.encode()}), 9), "a.txt is compressed with a rare method; unpack"),
    "sparse.tar": (sparse, "a.txt is stored as a sparse file; unpack the archive first"),
    "newer.tar": (newer_sparse, "it contains a sparse file; unpack the archive first"),
    "a.txt.zst": (with_dictionary, "it was compressed with a dictionary; decompress it first: zstd -d -D DICTIONARY"),
}


@pytest.mark.parametrize("name", PACKED)
def test_a_whole_archive_is_not_called_damaged(tmp_path: Path, name: str) -> None:
    make, reason = PACKED[name]
    (tmp_path / name).write_bytes(make())
    for read in (in_training, lambda path: in_corpus(path, tmp_path / "out")):
        with pytest.raises(UserError) as caught:
            read(tmp_path / name)
        message = str(caught.value)
        assert reason in message and "not read" in message
        assert not any(word in message for word in ("damaged", "Get it again", "cannot be read to its end", "Replace"))


def test_a_damaged_archive_is_still_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped({"a.txt": PLAIN.encode()}).replace(b"lighthouse", b"lightHouse", 1)[:-30])
    with pytest.raises(UserError, match="cannot be read to its end"):
        in_training(tmp_path / "a.zip")


@pytest.mark.parametrize(
    ("name", "start"),
    [("a.z01", b"PK\x07\x08PK\x03\x04"), ("a.z02", b"\x8c\xf1\0\x02" * 40), ("a.zip", b"\x8c\xf1\0\x02" * 40)],
)
def test_a_part_of_a_divided_archive_is_named(tmp_path: Path, name: str, start: bytes) -> None:
    (tmp_path / name).write_bytes(start + zipped({"a.txt": PLAIN.encode()}))
    with pytest.raises(UserError, match=r"part of a zip archive, not text\. Join all parts, by .* in \.zip: zip -s 0 NAME\.zip"):
        in_training(tmp_path / name)


@pytest.mark.parametrize("name", ["a.zip", "a.sh", "a"])
def test_an_archive_that_extracts_itself_is_named(tmp_path: Path, name: str) -> None:
    content = random.Random(0).randbytes(9000)
    (tmp_path / name).write_bytes(b"#!/bin/sh\ntail -n +3 $0 | funzip\nexit\n" + zipped({"a.txt": content}))
    with pytest.raises(
        UserError, match=r"a zip archive behind a script, not text\. Extract its files first, .*: unzip .* -d texts"
    ):
        in_training(tmp_path / name)


def test_an_archive_of_no_files_is_called_an_archive(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"\0" * 10240)
    with pytest.raises(UserError, match="it contains no file that can be read"):
        in_training(tmp_path / "a.tar")


ZIPPED: dict[str, Callable[[bytes], bytes]] = {
    "bzip2": lambda content: zipped({"a.txt": content}, zipfile.ZIP_BZIP2),
    "lzma": lambda content: zipped({"a.txt": content}, zipfile.ZIP_LZMA),
    "zstandard": lambda content: packed_as(zstandard.compress(content), content, 93),
    "xz": lambda content: packed_as(lzma.compress(content), content, 95),
    "lzma without a mark at its end": lambda content: without_end_mark(content),
    "lzma with 7-Zip's window": lambda content: without_end_mark(content, window=5_000_000),
}


def packed_as(compressed: bytes, content: bytes, method: int) -> bytes:
    """Return a zip archive of a file that is compressed with a method that zipfile lacks."""
    archive = bytearray(with_method(zipped({"a.txt": compressed}, zipfile.ZIP_STORED), method))
    facts = struct.pack("<LLL", zlib.crc32(content), len(compressed), len(content))
    for mark, offset in ((b"PK\x03\x04", 14), (b"PK\x01\x02", 16)):
        start = archive.rindex(mark) + offset
        archive[start : start + len(facts)] = facts
    return bytes(archive)


def without_end_mark(content: bytes, *, window: int = 1 << 23) -> bytes:
    """Return a zip archive whose compressed data ends with the content, as other programs write it.

    Args:
        window: The size of LZMA's dictionary in bytes.
    """
    filters = [{"id": lzma.FILTER_LZMA1, "dict_size": window}]
    alone = lzma.compress(content, format=lzma.FORMAT_ALONE, filters=filters)
    member = b"\x05\x02\x05\x00" + alone[:1] + window.to_bytes(4, "little") + alone[13:]
    made = bytearray(packed_as(member, content, zipfile.ZIP_LZMA))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        made[made.rindex(mark) + offset] &= ~2
    return bytes(made)


def sizes_of_blocks(archive: bytes) -> list[int]:
    """Return the sizes of the blocks in which the members of a zip archive are read."""
    members = read_zip(io.BytesIO(archive), size=len(archive), limit=ContentLimit(len(archive)))
    return [len(block) for _, blocks in members for block in blocks]


@pytest.mark.parametrize("method", ZIPPED)
def test_members_of_a_zip_archive_are_read_however_they_are_compressed(tmp_path: Path, method: str) -> None:
    content = PLAIN.encode() * 50
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "a.zip").write_bytes(ZIPPED[method](content))
    assert in_training(tmp_path / "a.zip") == in_training(tmp_path / "a.txt")


@pytest.mark.parametrize("method", ZIPPED)
def test_members_are_read_in_blocks_and_damage_is_found(method: str) -> None:
    wrong = ZIPPED[method](b"0" * 100).replace(struct.pack("<L", zlib.crc32(b"0" * 100)), b"abcd")
    with pytest.raises(DamagedArchiveError, match=r"^a\.txt: its checksum is wrong"):
        sizes_of_blocks(wrong)
    large = ZIPPED[method](b"\0" * 40_000_000)
    assert len(large) < 100_000
    sizes = sizes_of_blocks(large)
    assert sum(sizes) == 40_000_000
    assert max(sizes) <= 2 * BLOCK


def test_an_error_without_a_text_means_a_truncated_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> bytes:
        raise EOFError

    monkeypatch.setattr(zipfile.ZipExtFile, "read", read)
    with pytest.raises(DamagedArchiveError, match=r"^a\.txt: the archive is truncated$"):
        sizes_of_blocks(zipped({"a.txt": PLAIN.encode()}))


def test_a_damaged_header_of_lzma_is_damage(tmp_path: Path) -> None:
    content = zipped({"a.txt": PLAIN.encode()}, zipfile.ZIP_LZMA).replace(b"\x05\x00]", b"\x06\x00]", 1)
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(UserError, match="the header of its compressed data is damaged"):
        in_training(tmp_path / "a.zip")

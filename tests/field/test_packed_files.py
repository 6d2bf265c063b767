"""Intact archives in an unsupported format are refused by that format's name, and are not called damaged."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from gpt_pretrain.errors import UserError
from tests.helpers.text_inputs import PLAIN, in_corpus, in_training, zipped


def encrypted() -> bytes:
    """Return a zip archive whose only file is marked as encrypted, at its start and in the list of files."""
    content = bytearray(zipped({"a.txt": PLAIN.encode()}))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
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
    "rare.zip": (lambda: zipped({"a.txt": PLAIN.encode()}, zipfile.ZIP_LZMA), "a.txt is compressed with a rare method; unpack"),
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

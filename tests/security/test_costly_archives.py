"""Archives in which a few bytes stand for very many members, or for very many fields that describe one."""

from __future__ import annotations

import io
import struct
import zipfile

import pytest

from gpt_pretrain.texts.archives import read_zip
from gpt_pretrain.texts.contents import open_contents
from gpt_pretrain.texts.decompression import ALWAYS_READ, ContentLimit, DamagedArchiveError
from gpt_pretrain.texts.left_out import LeftOut
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

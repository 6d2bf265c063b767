"""Footers of Parquet files for which Arrow throws what pyarrow does not catch, so that the process would end."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest

from gpt_pretrain.texts.parquet.footer import IS_ENCRYPTED, UNKNOWN_CODEC, WRONG_HISTOGRAM, check_footer
from tests.security.test_parquet_pages import read

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

TEXTS = ["one", "two"]
# Histograms of two values as they are written: of the definition levels of a nullable column, and of both levels of a list.
TEXT_LEVELS, LIST_LEVELS, LIST_REPETITIONS = b"\x19\x26\x00\x04", b"\x19\x46\x00\x00\x00\x04", b"\x19\x26\x04\x00"


def write(columns: dict[str, Any], **options: Any) -> bytes:
    stream, table = io.BytesIO(), pa.table(columns)
    with pq.ParquetWriter(stream, table.schema, **options) as writer:
        writer.write_table(table)
    return stream.getvalue()


def change_footer(data: bytes, old: bytes, new: bytes) -> bytes:
    """Replace bytes that the footer contains once."""
    length = int.from_bytes(data[-8:-4], "little")
    footer = data[-8 - length : -8]
    assert footer.count(old) == 1
    footer = footer.replace(old, new)
    return data[: -8 - length] + footer + len(footer).to_bytes(4, "little") + data[-4:]


@pytest.mark.parametrize("levels", [b"\x19\x16\x04", b"\x19\x36\x00\x04\x00"], ids=["short", "long"])
def test_a_histogram_of_another_length_than_the_levels_is_refused(levels: bytes) -> None:
    data = write({"text": TEXTS})
    assert read(data) == (TEXTS, "")
    assert read(change_footer(data, TEXT_LEVELS, levels)) == ([], WRONG_HISTOGRAM)


def test_an_empty_histogram_is_as_good_as_none() -> None:
    assert read(change_footer(write({"text": TEXTS}), TEXT_LEVELS, b"\x19\x06")) == (TEXTS, "")


@pytest.mark.parametrize(
    ("old", "new"),
    [(LIST_LEVELS, b"\x19\x36\x00\x00\x04"), (LIST_REPETITIONS, b"\x19\x16\x04")],
    ids=["definition", "repetition"],
)
def test_a_list_has_levels_of_its_own_and_the_other_columns_are_read(old: bytes, new: bytes) -> None:
    data = write({"more": [["a"], ["b"]], "text": TEXTS})
    assert check_footer(io.BytesIO(data)) == {}
    changed = change_footer(data, old, new)
    assert check_footer(io.BytesIO(changed)) == {0: WRONG_HISTOGRAM}
    assert read(changed) == (TEXTS, "")


def test_required_columns_in_groups_have_the_levels_that_arrow_counts() -> None:
    inner = pa.struct([pa.field("a", pa.int32(), nullable=False), pa.field("b", pa.list_(pa.list_(pa.int8())))])
    schema = pa.schema([pa.field("text", pa.string(), nullable=False), ("more", inner), ("map", pa.map_(pa.string(), inner))])
    row = {"text": "one", "more": {"a": 1, "b": [[1], None]}, "map": [("k", {"a": 1, "b": [[]]})]}
    pq.write_table(pa.Table.from_pylist([row, row | {"more": None}], schema), stream := io.BytesIO())
    assert check_footer(stream) == {}


@pytest.mark.parametrize("column", ["text", "more"])
def test_an_encrypted_column_is_refused_and_the_others_are_read(column: str) -> None:
    encryption = pytest.importorskip("pyarrow.parquet.encryption")

    class Keys(encryption.KmsClient):  # type: ignore[misc]
        def wrap_key(self, key_bytes: bytes, _: str) -> bytes:
            return base64.b64encode(key_bytes)

    settings = encryption.EncryptionConfiguration("key", plaintext_footer=True, column_keys={"key": [column]})
    factory = encryption.CryptoFactory(lambda _: Keys())
    properties = factory.file_encryption_properties(encryption.KmsConnectionConfig(), settings)
    data = write({"text": TEXTS, "more": TEXTS}, encryption_properties=properties)
    assert read(data) == (([], IS_ENCRYPTED) if column == "text" else (TEXTS, ""))


def test_an_unknown_compression_is_refused() -> None:
    data = write({"text": TEXTS}, use_dictionary=False, column_encoding="DELTA_LENGTH_BYTE_ARRAY", compression="zstd")
    assert read(data) == (TEXTS, "")
    for codec in (b"\x10", b"\x01"):  # 8 and -1
        changed = change_footer(data, b"\x19\x18\x04text\x15\x0c", b"\x19\x18\x04text\x15" + codec)
        assert read(changed) == ([], UNKNOWN_CODEC)


def test_the_size_of_texts_is_refused_for_another_type() -> None:
    data = write({"text": TEXTS, "more": [1, 2]})
    assert check_footer(io.BytesIO(data)) == {}
    changed = change_footer(data, b"\x15\x0c\x25\x02\x18\x04text", b"\x15\x0a\x25\x02\x18\x04text")
    assert check_footer(io.BytesIO(changed)) == {0: WRONG_HISTOGRAM}

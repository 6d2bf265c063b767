"""Arrow files of strangers, in a folder and as save_to_disk writes them: what they cost, and that texts lie within them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from gpt_pretrain.errors import UserError
from tests.helpers.read_datasets import read
from tests.helpers.resource_limits import within

datasets = pytest.importorskip("datasets")


def write(file: Path, column: pa.Array, *, other: pa.Array | None = None, batches: int = 1) -> None:
    table = pa.table({"text": column} if other is None else {"text": column, "other": other})
    with pa.OSFile(str(file), "wb") as stream:
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_stream(stream, table.schema, options=options) as writer:
            for _ in range(batches):
                writer.write_table(table)


def save(folder: Path, texts: list[str]) -> Path:
    """Save a dataset, and return its only file."""
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(folder)
    (file,) = folder.glob("*.arrow")
    return file


def shared_text(text: str, count: int) -> pa.Array:
    """Return texts that all lie in the same bytes."""
    _, views, data = pa.array([text], pa.string_view()).buffers()
    views = pa.py_buffer(views.to_pybytes()[:16] * count)
    return pa.Array.from_buffers(pa.string_view(), count, [None, views, data])


@pytest.mark.parametrize(
    ("column", "batches"),
    [
        (pa.array(["a" * 10_000] * 10), 20),
        (pa.array([b"a" * 10_000] * 10), 20),
        (pa.array([""] * 10_000), 2),
        (pa.array(["a<|endoftext|>" * 100]), 200),
        (shared_text("a" * 10_000, 200), 1),
    ],
    ids=["long texts", "bytes", "empty texts", "markers", "one text many times"],
)
def test_a_small_arrow_file_does_not_expand_without_limit(
    column: pa.Array, batches: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt_pretrain.texts.containers.decompression.ALWAYS_READ", 1 << 20)
    monkeypatch.setattr("gpt_pretrain.texts.containers.decompression.MAX_EXPANSION", 5)
    monkeypatch.setattr("gpt_pretrain.texts.datasets.arrow_tables.MAX_EXPANSION", 5)
    write(tmp_path / "x.arrow", column, batches=batches)
    with pytest.raises(UserError, match="Arrow files of this dataset expand to more than 5 times their size"):
        read(tmp_path)


@pytest.mark.parametrize("kind", ["text", "list", "struct", "dictionary"])
def test_texts_that_share_their_bytes_count_before_each_is_checked(kind: str, tmp_path: Path) -> None:
    shared, indices = shared_text("ü" * 1_000_000, 30_000), pa.array([0])
    other = {
        "text": None,
        "list": pa.ListArray.from_arrays([0, len(shared)], shared),
        "struct": pa.ListArray.from_arrays([0, len(shared)], pa.StructArray.from_arrays([shared], ["inner"])),
        "dictionary": pa.DictionaryArray.from_arrays(indices, shared),
    }[kind]
    write(tmp_path / "x.arrow", shared if other is None else pa.array(["a"]), other=other)
    with (
        within(15, megabytes=1000),
        pytest.raises(UserError, match="Arrow files of this dataset expand to more than 250 times their size"),
    ):
        read(tmp_path)


def test_other_columns_of_an_arrow_file_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt_pretrain.texts.containers.decompression.ALWAYS_READ", 1 << 20)
    write(tmp_path / "x.arrow", pa.array(["a"]), other=pa.array([[0] * 100_000]), batches=20)
    with pytest.raises(UserError, match="expand to more than 250 times their size"):
        read(tmp_path)


def test_each_arrow_file_explains_its_own_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt_pretrain.texts.containers.decompression.ALWAYS_READ", 0)
    texts = [f"text {number}" for number in range(300)]
    for number in range(3):
        write(tmp_path / f"{number}.arrow", pa.array(texts))
    assert read(tmp_path) == texts * 3


def test_a_saved_dataset_does_not_expand_without_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt_pretrain.texts.containers.decompression.ALWAYS_READ", 1 << 20)
    file = save(tmp_path / "saved", ["one", "two"])
    assert read(tmp_path / "saved") == ["one", "two"]
    write(file, pa.array([""] * 20_000))
    with pytest.raises(UserError, match="or have far more records than it explains"):
        read(tmp_path / "saved")


def test_a_text_of_a_saved_dataset_lies_within_its_file(tmp_path: Path) -> None:
    file = save(tmp_path / "saved", ["hello"] * 2)
    ends = b"".join(end.to_bytes(4, "little") for end in (0, 5, 10))
    content = file.read_bytes()
    assert content.count(ends) == 1
    file.write_bytes(content.replace(ends, ends[:8] + (200).to_bytes(4, "little")))
    with pytest.raises(UserError, match=r"out of bounds|larger than values"):
        read(tmp_path / "saved")


def test_a_text_of_another_type_than_stated_lies_within_its_file(tmp_path: Path) -> None:
    file = save(tmp_path / "saved", ["hello"] * 2)
    view = b"".join(number.to_bytes(4, "little") for number in (20, 0, 0, 1_000_000))  # length, beginning, buffer, offset
    views = pa.Array.from_buffers(pa.string_view(), 2, [None, pa.py_buffer(view * 2), pa.py_buffer(b"x" * 20)])
    write(file, views)
    with pytest.raises(UserError, match="references range"):
        read(tmp_path / "saved")


def test_a_file_of_either_kind_is_read(tmp_path: Path) -> None:
    table = pa.table({"text": pa.array(["one", "two"], pa.string_view()), "other": [[1], [2, 3]]})
    for name, new_file in (("a", pa.ipc.new_stream), ("b", pa.ipc.new_file)):
        with new_file(str(tmp_path / f"{name}.arrow"), table.schema) as writer:
            writer.write_table(table)
    assert read(tmp_path) == ["one", "two"] * 2

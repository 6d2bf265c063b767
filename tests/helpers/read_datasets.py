"""Read datasets as the program does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt_pretrain.texts.chunks import ReadPosition
from gpt_pretrain.texts.inputs import StreamedDataset
from gpt_pretrain.texts.records.tables import read_dataset


def read(folder: Path, *, split: str = "train") -> list[Any]:
    dataset = StreamedDataset(str(folder), None, split)
    return [value for chunk in read_dataset(dataset, "text", start=ReadPosition()) for value in chunk.content]


def declare(folder: Path, column_type: str) -> None:
    """Write a README.md that declares the type of a dataset's columns."""
    column = f"  - name: text\n    {column_type}\n  - name: title\n    dtype: string\n"
    (folder / "README.md").write_text(f"---\ndataset_info:\n  features:\n{column}---\n")

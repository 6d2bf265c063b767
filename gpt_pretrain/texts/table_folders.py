"""Recognize folders of tables whose log says which rows are current. Their files also hold rows that were deleted since."""

from __future__ import annotations

from pathlib import Path

from gpt_pretrain.errors import UserError

LOGS = {"_delta_log": "Delta Lake", ".hoodie": "Hudi"}


def check_no_table(folder: Path) -> None:
    """Check that the files of a folder may be read one by one.

    Raises:
        UserError: If they are those of a table with a log.
    """
    program = next((program for log, program in LOGS.items() if (folder / log).is_dir()), None)
    if program is None and (folder / "data").is_dir() and any((folder / "metadata").glob("*.metadata.json")):
        program = "Iceberg"
    if program is not None:
        raise UserError(
            f"{folder} is a table of {program}. Its files also hold rows that were deleted or replaced, which only the table's "
            "log tells apart. Write the current rows to a Parquet file, and give that file."
        )

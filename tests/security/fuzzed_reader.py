"""Describe to the fuzzer a reader of files that anybody may have written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT
from tests.security import mutations
from tests.security.mutations import Change

COMPAT = ROOT / "tests" / "data" / "compat" / "0.1.0"
BLIND, TEXT, JSON = mutations.change_bytes, mutations.change_text, mutations.change_json
ZIP, PICKLE, YAML = mutations.change_zip, mutations.change_pickle, mutations.change_yaml


@dataclass(frozen=True)
class FuzzedReader:
    """A reader, the files that it reads, and how they are changed.

    Args:
        make: Writes real files to an empty folder.
        changes: For each file that is changed, the ways to change it.
        read: Reads the folder, or one of the parts in it.
        after: Completes the changed folder, such as with a correct checksum.
        parts: Files and folders, of which only the changed one is read.
    """

    make: Callable[[Path], object]
    changes: dict[str, tuple[Change, ...]]
    read: Callable[[Path], object]
    after: Callable[[Path], object] | None = None
    parts: tuple[str, ...] = (".",)

    def part(self, pattern: str) -> str:
        """Return what is read after a file has been changed."""
        return next(part for part in self.parts if part == "." or f"{pattern}/".startswith(f"{part}/"))

"""Count the files of a folder or an archive that are not text and so are left out; note warnings about files that are read."""

from __future__ import annotations

import logging
import os
import re
from functools import cache
from pathlib import PurePath

from gpt_pretrain.system.formatting import format_count
from gpt_pretrain.system.recognition.conversion import quote_path
from gpt_pretrain.system.recognition.file_kinds import ARROW, COMPRESSED, TOKENS, FileKind
from gpt_pretrain.system.terminal import escape_line

SHOWN_KINDS = 6
SHARD_NAME = re.compile(r"(^|_)(train|val)(?![a-z])")  # a file of token shards, as this program, nanoGPT and llm.c name them
MAX_LINES, MAX_KINDS = 5, 1000  # warnings that are logged, and warnings that are noted

log = logging.getLogger(__name__)


@cache
def warn_once(line: str) -> None:
    """Log a warning, but not a second time: a run finds and reads the same text more than once."""
    log.warning("%s", line)


class FileWarnings:
    """Warnings about files that are read. Each is noted once, with its first file and the number of others."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[str, str]] = {}
        self._counts: dict[str, int] = {}

    def add(self, kind: FileKind, path: str) -> None:
        """Note the warning of a file's kind, if it has one. A member of an archive counts as a file."""
        if kind.warning and (kind.warning in self._counts or len(self._counts) < MAX_KINDS):
            in_command = quote_path(path) if kind.form not in COMPRESSED and os.path.isfile(path) else "FILE"
            self._first.setdefault(kind.warning, (path, in_command))
            self._counts[kind.warning] = self._counts.get(kind.warning, 0) + 1

    def report(self) -> None:
        """Log the warnings, the most frequent ones first."""
        ordered = sorted(self._counts, key=lambda warning: -self._counts[warning])
        for warning in ordered[:MAX_LINES]:
            (path, in_command), others = self._first[warning], self._counts[warning] - 1
            more = f" (and {format_count(others, 'more file')} like it)" * (others > 0)
            warn_once(f"{escape_line(path)}{more} {warning.replace('{path}', in_command)}.")
        if rest := sum(self._counts[warning] for warning in ordered[MAX_LINES:]):
            warn_once(f"{format_count(rest, 'more file')} would get a warning like these.")


class LeftOut:
    """Counts files by their kinds.

    Attributes:
        warnings: The warnings about files that are read.
    """

    def __init__(self) -> None:
        self.warnings = FileWarnings()
        self._counts: dict[FileKind, int] = {}
        self._first: dict[FileKind, str] = {}
        self._advice = ""

    def add(self, kind: FileKind, path: str) -> None:
        """Count a file."""
        # JSON beside Arrow files or token shards describes them.
        is_dataset = kind.name == ARROW.name or (kind.advice == TOKENS.advice and SHARD_NAME.search(PurePath(path).name))
        if is_dataset or (not self._advice and " without a " in kind.name):
            self._advice = kind.advice
        kind = FileKind(kind.name)  # Kinds that differ only in their encoding count as one.
        self._counts[kind] = self._counts.get(kind, 0) + 1
        self._first.setdefault(kind, PurePath(path).name)

    def described(self) -> str:
        """Return a list such as ": 2 PNG images (a.png, ...), 1 empty file (b.txt)", or "" if nothing was left out."""
        parts = [
            f"{kind.counted(count)} ({self._first[kind]}{', ...' * (count > 1)})"
            for kind, count in sorted(self._counts.items(), key=lambda item: -item[1])[:SHOWN_KINDS]
        ]
        more = ", and other kinds" * (len(self._counts) > SHOWN_KINDS)
        return f": {', '.join(parts)}{more}" if parts else ""

    def advice(self) -> str:
        """Return how to read a dataset, or JSON and tables that were left out because their text is in another field, or ""."""
        return f". {self._advice.rstrip('.')}" if self._advice else ""

    def report(self, where: str) -> None:
        """Log the warnings, and what was left out of a folder or an archive."""
        self.warnings.report()
        if self._counts:
            total = format_count(sum(self._counts.values()), "file")
            warn_once(escape_line(f"{where}: {total} left out{self.described()}."))

"""Collect what is odd about files that are read nevertheless, so that a folder of a thousand such files is a single line."""

from __future__ import annotations

import logging
import os

from gpt_pretrain.system.file_kinds import COMPRESSED, FileKind
from gpt_pretrain.system.formatting import format_count
from gpt_pretrain.system.old_encodings import quote_path
from gpt_pretrain.system.terminal import escape_line

MAX_LINES, MAX_KINDS = 5, 1000  # Of warnings that are logged, and that are noted.

log = logging.getLogger(__name__)


class FileWarnings:
    """The warnings about files, each with the first file and the number of others that it is about."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[str, str]] = {}
        self._counts: dict[str, int] = {}

    def add(self, kind: FileKind, path: str) -> None:
        """Note the warning of a file's kind, if it has one. The file may be a member of an archive."""
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
            log.warning("%s%s %s.", escape_line(path), more, warning.replace("{path}", in_command))
        if rest := sum(self._counts[warning] for warning in ordered[MAX_LINES:]):
            log.warning("%s would get a warning like these.", format_count(rest, "more file"))

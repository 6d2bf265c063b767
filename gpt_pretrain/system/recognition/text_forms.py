"""Recognize by its beginning that a plain text is really a table, or another file encoded in letters."""

from __future__ import annotations

import contextlib
import csv
import re

# The names of columns, and the separators between them.
HEADER = re.compile(r"[^\W\d]\w{0,40}([,;|\t]) ?[^\W\d][\w ]{0,40}(?:\1 ?[^\W\d][\w ]{0,40})*")
FEWEST_ROWS, MOST_ROWS = 3, 20  # rows of a table to examine
# Lines of equal length in Base64, in the form of e-mail programs and OpenSSL.
BASE64 = re.compile(r"(?:(?:[A-Za-z0-9+/]{60}|[A-Za-z0-9+/]{64}|[A-Za-z0-9+/]{72}|[A-Za-z0-9+/]{76})\r?\n){5}")
FEWEST_DIFFERENT = 40  # Distinct characters in five lines of Base64. Gene sequences have four or twenty.
UUENCODED = re.compile(r"begin(-base64)? [0-7]{3,4} \S.*\r?\n[^\s]{40}")


def other_form(start: str) -> str:
    """Describe a plain text that is not running text, as the rest of a sentence with {path} for its file, or return nothing.

    Args:
        start: The beginning of the text.
    """
    if (header := _table_header(start)) is not None:
        return (
            f"is read as plain text, but begins like a table with the columns {header}. To read one of them, give the file a "
            "name that ends in .csv"
        )
    if (found := BASE64.match(start)) is not None and len(set(found[0])) >= FEWEST_DIFFERENT:
        return "is read as plain text, but is a file in Base64 (to decode it: base64 -d {path} > new)"
    if UUENCODED.match(start):
        return "is read as plain text, but contains an encoded file (to decode it: uudecode {path})"
    return ""


def _table_header(start: str) -> str | None:
    """Return the names of the columns if a text consists of such a heading and rows with as many values, or None."""
    first, *rows = start.split("\n", MOST_ROWS + 1)[: MOST_ROWS + 1]
    first = first.rstrip()
    header, complete = HEADER.fullmatch(first), [row for row in rows if row.strip()]
    if header is None:
        return None
    names, counts = [name.strip() for name in first.split(header[1])], list[int]()
    with contextlib.suppress(csv.Error):  # The end of a value over several lines may be missing.
        counts += (len(row) for row in csv.reader(complete, delimiter=header[1], strict=True, skipinitialspace=True))
    return ", ".join(names) if len(counts) >= FEWEST_ROWS and set(counts[:-1]) == {len(names)} else None

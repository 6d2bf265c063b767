"""Unify line ends: \\r\\n and \\r become \\n, so that a text has the same tokens wherever it was saved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import AnyStr


def unify_line_ends(text: AnyStr) -> AnyStr:
    """Return a text, or its bytes in UTF-8, with \\n at the end of each line."""
    if isinstance(text, str):
        return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
    return text.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in text else text


def unify_line_ends_in_blocks(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the bytes of a text in UTF-8 that arrives in blocks, with \\n at the end of each line."""
    after_return = False
    for block in blocks:
        if after_return and block.startswith(b"\n"):
            block = block[1:]
            after_return = False
        if block:
            after_return = block.endswith(b"\r")
            yield unify_line_ends(block)

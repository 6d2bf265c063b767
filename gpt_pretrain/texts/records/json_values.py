"""Split JSON into one line per value: an array of any length, or objects one after another over any number of lines.

Only quotes and brackets are looked at here, a block at a time. The workers parse the values later, as they parse JSON lines.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

import numpy as np

from gpt_pretrain.texts.chunks import LONGEST_RECORD, MAX_LINES, Chunk, Cursor
from gpt_pretrain.texts.containers.decompression import BLOCK, DamagedArchiveError

SEPARATORS = b" \t\r\n,\x1e"  # Between values; some programs write a comma after each object, or the record separator before it.
QUOTE, COMMA, LINE_FEED = ord('"'), ord(","), ord("\n")
STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
MAX_GLUED = 10_000  # objects on one line with nothing between them; a line with more is one damaged record
GLUED = re.compile(rb'\}[ \t]*\{[ \t]*["}]')  # This may also match inside of a string.
_CHANGES = np.zeros(256, np.int8)  # how each character changes the depth
_CHANGES[list(b"[{")] = 1
_CHANGES[list(b"]}")] = -1


def split_values(blocks: Iterable[bytes], cursor: Cursor, *, is_array: bool) -> Iterator[Chunk]:
    """Split the content of a file into chunks of whole values, one on each line.

    Args:
        is_array: Whether the values are the elements of an array. Otherwise they follow one another.

    Raises:
        DamagedArchiveError: If the last value is incomplete, or a bracket closes nothing. Everything before is yielded first.
    """
    scanner = _BracketScanner(depth=int(is_array and cursor.record > 0), is_array=is_array)
    rest, skipped = bytearray(), 0  # the beginning of a value; the bytes of a too long value so far
    for block in scanner.whole_escapes(blocks):
        start, values, size = 0, list[bytes](), 0
        for end in scanner.ends(block):
            rest += block[start:end]
            length = len(rest) + skipped
            value, rest = bytes(rest).strip(SEPARATORS), bytearray()  # Freed at once: a long value would be in memory twice.
            if skipped or len(value) > LONGEST_RECORD:
                yield from _take_values(cursor, values, size)
                yield cursor.reject("too long", f"more than {LONGEST_RECORD:,} bytes", size=length)
                values, size = [], 0
            else:
                size += length
                is_between = value in (b"", b"[") or value.startswith(b"]")  # brackets around the values or between arrays
                values += [] if is_between else [scanner.on_one_line(value)]
            if len(values) == MAX_LINES:
                yield from _take_values(cursor, values, size)
                values, size = [], 0
            start, skipped = end, 0
        yield from _take_values(cursor, values, size)
        cursor.offset += 0 if values else size
        if skipped or len(rest) + len(block) - start > LONGEST_RECORD:
            skipped, rest = skipped + len(rest) + len(block) - start, bytearray()
        else:
            rest += block[start:]
    left = bytes(rest).strip(SEPARATORS + b"]" * is_array)
    if scanner.depth > 0 or scanner.in_string or skipped:
        raise DamagedArchiveError("the JSON ends in the middle of a value")
    if left:
        yield from _take_values(cursor, [scanner.on_one_line(left)], len(rest))


def _take_values(cursor: Cursor, values: list[bytes], size: int) -> Iterator[Chunk]:
    if values:
        # The last value gets a line feed too. Without one, a damaged value would be taken for one that was cut off.
        yield cursor.records(b"\n".join([*values, b""]), size=size, count=len(values))


class _BracketScanner:
    """Finds the ends of values in consecutive blocks.

    Args:
        depth: Number of open brackets before the first block.
        is_array: Whether values are elements of an array.
    """

    def __init__(self, *, depth: int, is_array: bool) -> None:
        self.depth, self.in_string = depth, False
        self._is_array, self._position, self._any_line_feed = is_array, 0, False

    def whole_escapes(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the same bytes in blocks that never end between a backslash and the character that it escapes."""
        rest = b""
        for block in blocks:
            block = rest + block
            escapes = len(block) - len(block.rstrip(b"\\"))
            kept = len(block) - escapes % 2  # An even number of backslashes escapes nothing after them.
            block, rest = block[:kept], block[kept:]
            yield block
        yield rest

    def ends(self, block: bytes) -> list[int]:
        """Return the positions in the next block at which a value ends, and the one at which the first value begins.

        Raises:
            DamagedArchiveError: If a bracket closes nothing.
        """
        if not block:
            return []
        codes = np.frombuffer(block.replace(b"\\\\", b"__").replace(b'\\"', b"__"), np.uint8)
        inside = np.bitwise_xor.accumulate((codes == QUOTE).view(np.uint8)) ^ np.uint8(self.in_string)
        self._any_line_feed |= bool(((codes == LINE_FEED) & (inside == 1)).any())
        changes = np.where(inside, np.int8(0), _CHANGES[codes])
        depths = np.cumsum(changes, dtype=np.int32) + np.int32(self.depth)
        if int(depths.min()) < 0:
            raise DamagedArchiveError(f"a bracket at byte {self._position + int(np.argmax(depths < 0)):,} closes nothing")
        if self._is_array:
            commas = np.flatnonzero((codes == COMMA) & (inside == 0) & (depths == 1)) + 1
            closed = np.flatnonzero((changes < 0) & (depths == 0))  # Before the bracket: reading resumes within the array.
            opened = np.flatnonzero((changes > 0) & (depths == 1)) + 1
            ends = np.sort(np.concatenate([commas, closed, opened]))
        else:
            ends = np.flatnonzero((changes < 0) & (depths == 0)) + 1
        self.depth, self.in_string = int(depths[-1]), bool(inside[-1])
        self._position += len(block)
        found: list[int] = ends.tolist()
        return found

    def on_one_line(self, value: bytes) -> bytes:
        """Return a value without line feeds. In strings, where JSON does not allow line feeds, they become escapes."""
        if self._any_line_feed and b"\n" in value:
            value = STRING.sub(lambda string: string[0].replace(b"\n", b"\\n"), value)
        return value.replace(b"\n", b" ")


def split_glued(line: bytes) -> list[bytes]:
    """Split a line of JSON into its objects, if several follow one another with nothing between them."""
    if not 0 < sum(1 for _ in itertools.islice(GLUED.finditer(line), MAX_GLUED + 1)) <= MAX_GLUED:
        return [line]
    ends, before, scanner = list[int](), 0, _BracketScanner(depth=0, is_array=False)
    try:
        # In small blocks, since the scanner needs ten times the memory of a block.
        for block in scanner.whole_escapes(line[start : start + BLOCK] for start in range(0, len(line), BLOCK)):
            ends += [before + end for end in scanner.ends(block)]
            before += len(block)
    except DamagedArchiveError:
        return [line]
    values = [line[start:end].strip(SEPARATORS) for start, end in itertools.pairwise([0, *ends, len(line)])]
    return [value for value in values if value]

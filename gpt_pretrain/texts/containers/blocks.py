"""Look at the first blocks of a stream, and hand on the stream as if nobody had."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import BinaryIO, TypeVar

from gpt_pretrain.system.recognition.file_kinds import HEAD
from gpt_pretrain.texts.containers.decompression import BLOCK, DamagedArchiveError

T = TypeVar("T")


def read_stream(stream: BinaryIO, start: int = 0) -> Iterator[bytes]:
    """Yield the bytes of an open file from an offset on."""
    stream.seek(start)
    while block := stream.read(BLOCK):
        yield block


def peek(blocks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """Return the first HEAD bytes, and a stream of all bytes. It raises an error where the original stream does."""
    taken, blocks = look_ahead(blocks, lambda first: take(first, HEAD))
    return taken[:HEAD], blocks


def take(blocks: Iterator[bytes], size: int) -> bytes:
    """Return the first blocks, joined, until they have at least `size` bytes."""
    taken, length = list[bytes](), 0
    while length < size and (block := next(blocks, None)) is not None:
        taken.append(block)
        length += len(block)
    return b"".join(taken)


def look_ahead(blocks: Iterator[bytes], look: Callable[[Iterator[bytes]], T]) -> tuple[T, Iterator[bytes]]:
    """Return the result of a function that looks at the first bytes, and a stream of all bytes.

    Args:
        look: The function. If the bytes are damaged, the stream just ends for it. The stream that is returned raises the error.
    """
    taken, errors = list[bytes](), list[DamagedArchiveError]()

    def remembered() -> Iterator[bytes]:
        try:
            for block in blocks:
                taken.append(block)
                yield block
        except DamagedArchiveError as error:
            errors.append(error)

    found = look(remembered())
    return found, itertools.chain(taken, _raise(errors[0]) if errors else blocks)


def _raise(error: Exception) -> Iterator[bytes]:
    raise error
    yield b""

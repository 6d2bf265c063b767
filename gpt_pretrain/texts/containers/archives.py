"""Read the files in tar and zip archives one after another, without unpacking them.

Python's tarfile is not used: it keeps a record of each member, and reads names of any length into memory.
"""

from __future__ import annotations

import re
import stat
import zipfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from gpt_pretrain.texts.containers.decompression import BLOCK, ContentLimit, DamagedArchiveError, PackedFileError
from gpt_pretrain.texts.containers.zip_members import ZIP_DAMAGE, check_no_overlap, read_member

RECORD = 512  # bytes of a header in a tar archive, and the unit to which contents are padded
LONGEST_NAME = 1 << 16
REGULAR, WITHOUT_CONTENT = b"0\0" + b"7", b"123456"
LONG_NAME, EXTENDED, OTHER_HEADERS, SPARSE, CONTINUED = b"L", b"x", b"gKVXNA", b"S", b"M"
DIGITS = re.compile("[0-9]{1,18}")
MAX_FIELDS = 1000  # fields of one extended header; a file with many attributes has a few dozen
EXTENDED_LINE = re.compile(rb"(\d{1,7}) ")
NO_DIRECTORY = "File is not a zip file"  # zipfile's words for an archive without its end
# The list of a zip archive's members takes up to fifteen times its size in memory. Inside of a compressed file, it can expand a
# thousandfold. So it may have this many bytes, or one third of the size of the archive if that is more.
MAX_DIRECTORY, DIRECTORY_PART = 1 << 22, 3
# To limit time as well as memory, each member of an archive counts as MEMBER bytes of its content, and each byte of the list in a
# zip archive as DIRECTORY_BYTE: zipfile copies the list's entry of a member once for each of the fields in it. Inside of another
# archive, members and lists may take nearly no space.
MEMBER, DIRECTORY_BYTE = 1 << 13, 16
MANY_FILES = "it contains too many files to be read as an archive; unpack it first"

Members = Iterator[tuple[str, Iterator[bytes]]]


def read_tar(blocks: Iterable[bytes]) -> Members:
    """Yield the name and the content of each regular file in a tar archive.

    Each content must be read before the next file is asked for.

    Raises:
        DamagedArchiveError: If the archive is truncated or a header is damaged.
    """
    reader = _ByteReader(blocks)
    extended: dict[str, str] = {}
    while header := reader.read(RECORD, at_end=True):
        if not header.strip(b"\0"):
            continue  # The archive ends here, and another one may follow.
        name, kind, size = _parse_header(header, reader.position)
        if kind in LONG_NAME + EXTENDED:
            content = reader.read(min(size, LONGEST_NAME))
            reader.skip(size + -size % RECORD - len(content))
            extended |= {"path": _text(content)} if kind == LONG_NAME else _parse_extended(content)
            continue
        if kind in OTHER_HEADERS:
            reader.skip(size + -size % RECORD)
            continue
        if kind == CONTINUED:
            raise PackedFileError(
                f"it continues {name} from another volume; unpack all volumes first: tar -xM -f FIRST -f SECOND"
            )
        if kind == SPARSE:
            raise PackedFileError(f"{name} is stored as a sparse file; unpack the archive first")
        size = int(extended["size"]) if DIGITS.fullmatch(extended.get("size", "")) else size
        name, extended = extended.get("path", name), {}
        if kind in WITHOUT_CONTENT:
            continue
        end = reader.position + size + -size % RECORD
        if kind in REGULAR:
            yield name, reader.blocks(size)
        reader.skip(end - reader.position)


def read_zip(stream: BinaryIO, *, size: int, limit: ContentLimit) -> Members:
    """Yield the name and the content of each regular file in a zip archive, which must be seekable.

    Args:
        size: Bytes of the file on the disk: the archive itself, or the file that contains it.
        limit: Limits what this file expands to: the contents, and the list of the archive's members.

    Raises:
        DamagedArchiveError: If the archive is truncated or damaged.
        PackedFileError: If it is encrypted, compressed with a rare method, or has too many files.
    """
    try:
        _check_directory(stream, size, limit)
        with zipfile.ZipFile(stream) as archive:
            check_no_overlap(archive)
            for member in archive.infolist():
                if not member.filename.endswith("/") and not stat.S_ISLNK(member.external_attr >> 16):
                    yield member.filename, read_member(archive, member, limit)
    except ZIP_DAMAGE as error:
        problem = "its end, which lists its files, is missing" if str(error) == NO_DIRECTORY else str(error)
        raise DamagedArchiveError(problem or type(error).__name__) from error


def is_hidden(name: str) -> bool:
    """Return whether a member is skipped: a hidden file, as in folders, or what macOS adds to archives."""
    return any(part == "__MACOSX" or (part.startswith(".") and part not in (".", "..")) for part in name.split("/"))


class _ByteReader:
    """Reads a stream of blocks by numbers of bytes.

    Attributes:
        position: Bytes read so far.
    """

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._block, self._offset = b"", 0
        self.position = 0

    def read(self, count: int, *, at_end: bool = False) -> bytes:
        """Return the next `count` bytes.

        Args:
            at_end: Return nothing if the stream has ended.

        Raises:
            DamagedArchiveError: If there are fewer.
        """
        parts: list[bytes] = []
        while count and (part := self._next(count)):
            parts.append(part)
            count -= len(part)
        if count and not (at_end and not parts):
            raise DamagedArchiveError("the archive is truncated")
        return b"".join(parts)

    def blocks(self, count: int) -> Iterator[bytes]:
        """Yield the next `count` bytes in blocks.

        Raises:
            DamagedArchiveError: If there are fewer.
        """
        while count > 0:
            if not (part := self._next(min(count, BLOCK))):
                raise DamagedArchiveError("the archive is truncated")
            count -= len(part)
            yield part

    def skip(self, count: int) -> None:
        """Skip the next `count` bytes."""
        for _ in self.blocks(count):
            pass

    def _next(self, count: int) -> bytes:
        while self._offset == len(self._block):
            if (block := next(self._blocks, None)) is None:
                return b""
            self._block, self._offset = block, 0
        part = self._block[self._offset : self._offset + count]
        self._offset += len(part)
        self.position += len(part)
        return part


def _parse_header(header: bytes, position: int) -> tuple[str, bytes, int]:
    """Return the name, the kind and the size of a member of a tar archive.

    Raises:
        DamagedArchiveError: If the checksum is wrong.
    """
    try:
        if _number(header[148:156]) != sum(header[:148]) + 8 * 32 + sum(header[156:]):
            raise ValueError
        size = _number(header[124:136])
        if not 0 <= size < 1 << 62:
            raise ValueError
    except ValueError:
        raise DamagedArchiveError(f"the header at byte {position - RECORD:,} is damaged") from None
    name = _text(header[:100])
    if header[257:263] == b"ustar\0" and header[345]:
        name = f"{_text(header[345:500])}/{name}"
    return name, header[156:157], size


def _number(field: bytes) -> int:
    """Return the number in a field of a header: octal digits or, for large ones, base 256."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    return int(field.strip(b" \0") or b"0", 8)


def _parse_extended(content: bytes) -> dict[str, str]:
    """Return the fields path and size of an extended header, whose lines are `length name=value`.

    Raises:
        PackedFileError: If the member is stored as a sparse file.
        DamagedArchiveError: If there are far too many fields.
    """
    found, start, n_fields = dict[str, str](), 0, 0
    while (match := EXTENDED_LINE.match(content, start)) and start + int(match[1]) > match.end():
        if (n_fields := n_fields + 1) > MAX_FIELDS:
            raise DamagedArchiveError(f"it describes a member with more than {MAX_FIELDS:,} fields")
        name, _, value = content[match.end() : start + int(match[1]) - 1].partition(b"=")
        if name.startswith(b"GNU.sparse"):
            raise PackedFileError("it contains a sparse file; unpack the archive first")
        if name in (b"path", b"size"):
            found[name.decode()] = _text(value)
        start += int(match[1])
    return found


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(errors="replace")


def _check_directory(stream: BinaryIO, size: int, limit: ContentLimit) -> None:
    """Check that the list of a zip archive's members is not too large. zipfile would read it as a whole.

    Raises:
        PackedFileError: If it is too large.
    """
    # The archive states the size of the list in two places. This function of zipfile returns the size that zipfile uses.
    end = zipfile._EndRecData(stream)  # type: ignore[attr-defined]
    length = 0 if end is None else end[zipfile._ECD_SIZE]  # type: ignore[attr-defined]
    if length > MAX_DIRECTORY + size // DIRECTORY_PART:
        raise PackedFileError(MANY_FILES)
    limit.take(DIRECTORY_BYTE * length, MANY_FILES)

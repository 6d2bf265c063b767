"""Read a member of a zip archive in blocks, however it is compressed.

zipfile decompresses a few kilobytes of some members at once, and they may expand to gigabytes. It only reads their compressed
bytes here.
"""

from __future__ import annotations

import copy
import struct
import zipfile
import zlib
from collections.abc import Iterator
from itertools import chain

from gpt_pretrain.texts.containers.decompression import BLOCK, ContentLimit, DamagedArchiveError, PackedFileError, decompress

ZIP_DAMAGE = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error, EOFError),
    *(RuntimeError, ValueError, LookupError, OverflowError),  # zipfile trusts most fields and stumbles over wrong ones
)
ENCRYPTED, HAS_END_MARK = 1, 2  # flags of a member; only LZMA has the second one
FORMS = {zipfile.ZIP_BZIP2: "bz2", zipfile.ZIP_LZMA: "xz", 93: "zst", 95: "xz"}  # methods of compression, and `decompress`
LZMA_HEADER, LZMA_PROPERTIES = 4, 5  # bytes: a version and the length of the properties, then the properties
UNKNOWN_SIZE, LARGEST_WINDOW = 2**64 - 1, 2**32 - 1


def check_no_overlap(archive: zipfile.ZipFile) -> None:
    """Check that no bytes of an archive belong to several members. A small archive could otherwise take unlimited time.

    zipfile checks this too since Python 3.11.8 and 3.12.2.

    Raises:
        DamagedArchiveError: If some do.
    """
    if sum(member.compress_size for member in archive.infolist()) > archive.start_dir:
        raise DamagedArchiveError("its files overlap")


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: ContentLimit) -> Iterator[bytes]:
    """Yield the content of a member in blocks of at most about BLOCK bytes.

    Args:
        limit: Limits what the whole archive expands to.

    Raises:
        DamagedArchiveError: If it is damaged or expands too far.
        PackedFileError: If it is encrypted, or compressed with a rare method.
    """
    if member.flag_bits & ENCRYPTED:
        raise PackedFileError(f"{member.filename} is encrypted; unpack the archive first")
    is_common = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    if not is_common and member.compress_type not in FORMS:
        raise PackedFileError(f"{member.filename} is compressed with a rare method; unpack the archive first")
    try:
        yield from limit.apply(_read(archive, member)) if is_common else _decompress(archive, member, limit)
    except PackedFileError:
        raise
    except (*ZIP_DAMAGE, DamagedArchiveError) as error:
        raise DamagedArchiveError(f"{member.filename}: {str(error) or 'the archive is truncated'}") from error


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    with archive.open(member) as content:
        while block := content.read(BLOCK):
            yield block


def _decompress(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: ContentLimit) -> Iterator[bytes]:
    stored = copy.copy(member)
    stored.compress_type, stored.file_size = zipfile.ZIP_STORED, member.compress_size
    del stored.CRC  # the checksum of the content
    compressed = _read(archive, stored)
    if member.compress_type == zipfile.ZIP_LZMA:
        compressed = _with_lzma_header(compressed, member)
    checksum = 0
    for block in decompress(compressed, FORMS[member.compress_type], limit):
        checksum = zlib.crc32(block, checksum)
        yield block
    if checksum != member.CRC:
        raise DamagedArchiveError("its checksum is wrong")


def _with_lzma_header(blocks: Iterator[bytes], member: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield the bytes of a member that is compressed with LZMA as an .lzma file, which states the size of its content."""
    first = b""
    while len(first) < LZMA_HEADER + LZMA_PROPERTIES and (block := next(blocks, b"")):
        first += block
    length = int.from_bytes(first[2:LZMA_HEADER], "little")
    if length != LZMA_PROPERTIES or len(first) < LZMA_HEADER + LZMA_PROPERTIES:
        raise DamagedArchiveError("the header of its compressed data is damaged")
    size = UNKNOWN_SIZE if member.flag_bits & HAS_END_MARK else member.file_size
    model, window = first[LZMA_HEADER : LZMA_HEADER + 1], first[LZMA_HEADER + 1 :][: LZMA_PROPERTIES - 1]
    header = model + _whole_window(int.from_bytes(window, "little")).to_bytes(4, "little") + size.to_bytes(8, "little")
    yield from chain([header + first[LZMA_HEADER + LZMA_PROPERTIES :]], blocks)


def _whole_window(size: int) -> int:
    """Return the next power of two, or the largest size. liblzma (5.4) takes other sizes, such as 7-Zip's, for damage."""
    return min(1 << max(size - 1, 0).bit_length(), LARGEST_WINDOW)

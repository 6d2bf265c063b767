"""A cache on the local disk for a folder behind a URL.

Training reads windows at random positions, so small blocks are fetched, which takes little longer than fetching a window alone.
If the whole folder fits into the cache, its files are fetched one after another in the background and replace their blocks.
Several processes may share a cache: files appear in it complete, and deleted ones are fetched again. A block counts only with
this user's signature, and each process compares a whole file with its checksum before it reads it for the first time.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

from gpt_pretrain.data.files import LocalFiles
from gpt_pretrain.data.private_cache import mark_as_used, open_cache, open_own
from gpt_pretrain.data.remote.disk_cache import WHOLE, ChecksumError, DiskCache
from gpt_pretrain.data.remote.fetching import BlockFetcher, pause
from gpt_pretrain.data.remote.remote_files import RemoteFiles
from gpt_pretrain.errors import UserError

BLOCK = 1 << 16  # bytes
PIECE = 1 << 23  # bytes of a whole file that one request asks for
TOUCH_INTERVAL = 30.0  # seconds between two marks of a whole file as used
CHECKSUM_BLOCK = 99_999_999  # in place of this block, the checksum of the whole file
WHOLE_FILES_LIMIT = 0.8  # share of the cache's size up to which whole files are fetched

log = logging.getLogger(__name__)


class CachedFiles:
    """The files of a folder behind a URL, read through a cache on the local disk.

    Args:
        files: The folder.
        key: Identifies the content of the folder.
        cache_dir: The folder that contains the cache.
        checksums: The files to read, each with its SHA-256 in hexadecimal, if known.
    """

    remote = True

    def __init__(self, files: RemoteFiles, *, key: str, cache_dir: Path, checksums: dict[str, str | None]) -> None:
        self.files = files
        self.location = files.location
        self.sizes = {name: files.size(name) or 0 for name in checksums}
        self.checksums = checksums
        self.cache = DiskCache(open_cache(cache_dir, "remote"), max_bytes=files.settings.cache_bytes)
        self.folder = self.cache.path / hashlib.sha256(f"{files.location} {key}".encode()).hexdigest()[:32]
        self.whole_files = LocalFiles(self.folder / WHOLE)
        self._verified: set[str] = set()  # the whole files whose content is right, as this process has found
        self._process_fetcher: tuple[int, BlockFetcher] | None = None  # with the id of its process
        self._disk_full = False
        self._damage: str | None = None  # the message about a damaged file
        self._touched: dict[str, float] = {}  # when a whole file was last marked as used, in seconds

    def names(self) -> list[str]:
        return sorted(self.sizes)

    def size(self, name: str) -> int | None:
        return self.sizes.get(name)

    def read(self, name: str, start: int, count: int) -> bytes:
        if self._damage is not None:
            raise UserError(self._damage)
        with suppress(OSError):  # the whole file is not in the cache
            self._verify(name)
            return self.whole_files.read_file(name, start, count)
        end = min(start + count, self.sizes[name])
        blocks = [self._read_block(name, block) for block in range(start // BLOCK, -(-end // BLOCK))]
        first = start // BLOCK * BLOCK
        return b"".join(blocks)[start - first : end - first]

    def prefetch(self, name: str, start: int, count: int) -> None:
        """Start to fetch the blocks of a range. The first call also starts to fetch whole files."""
        if time.monotonic() - self._touched.get(name, -math.inf) < TOUCH_INTERVAL:
            return
        with suppress(OSError):
            mark_as_used(self.whole_files.folder / name)
            self._touched[name] = time.monotonic()
            return
        fetcher = self._fetcher()
        end = min(start + count, self.sizes[name])
        for block in range(start // BLOCK, -(-end // BLOCK)):
            if not self._block_path(name, block).exists():
                fetcher.request((name, block))

    def fetch_whole_files(self) -> None:
        """Fetch all files into the cache one after another, each by only one process of this machine."""
        for name, size in self.sizes.items():
            path = self.whole_files.folder / name
            try:
                with self.cache.try_lock(path) as held:
                    if held and not self._is_complete(name):
                        self._fetch_whole_file(name, size, path)
            except (OSError, UserError) as error:
                log.warning(
                    "%s/%s could not be fetched as a whole (%s). Only blocks are fetched now.", self.location, name, error
                )
                return

    def _fetch_whole_file(self, name: str, size: int, path: Path) -> None:
        """Fetch a file. If its checksum is wrong twice, report the file as damaged and stop reading."""
        for attempt in (1, 2):
            try:
                pieces = map(partial(self._fetch_piece, name), range(0, size, PIECE))
                found = self.cache.write_pieces(path, pieces, sha256=self.checksums.get(name), n_bytes=size)
                self._remember_checksum(name, found)
                self._verified.add(name)
                return
            except ChecksumError:
                self.cache.forget(self.folder / name)  # the blocks of the file
                if attempt == 2:
                    self._damage = f"data.path={self.location}: {name} is damaged: its checksum differs. Copy it there again."

    def _fetch_piece(self, name: str, start: int) -> bytes:
        pause(0)  # ends the thread here if it has been stopped
        return self.files.read(name, start, PIECE)

    def _is_complete(self, name: str) -> bool:
        """Return whether the cache holds a whole file with the right content."""
        try:
            self._verify(name)
        except OSError:
            return False
        return True

    def _verify(self, name: str) -> None:
        """Compare a whole file in the cache with its checksum, once in each process. Delete the file if it differs.

        Raises:
            OSError: If the cache does not hold it, or it differs.
        """
        if name in self._verified:
            return
        path = self.whole_files.folder / name
        expected = self.checksums.get(name) or self._remembered_checksum(name)
        with open_own(path) as stream:
            same_length = os.fstat(stream.fileno()).st_size == self.sizes[name]
            intact = same_length and hashlib.file_digest(stream, "sha256").hexdigest() == expected
        if not intact:
            log.warning(
                "%s/%s: the copy in the cache is not the file that was fetched. It is fetched again.", self.location, name
            )
            os.unlink(path)
            raise OSError(f"{path} is damaged")
        self._verified.add(name)

    def _remember_checksum(self, name: str, sha256: str) -> None:
        """Store the checksum of a whole file for which the corpus states none."""
        if self.checksums.get(name) is None:
            self.cache.write(self._block_path(name, CHECKSUM_BLOCK), bytes.fromhex(sha256))

    def _remembered_checksum(self, name: str) -> str | None:
        stored = self.cache.read(self._block_path(name, CHECKSUM_BLOCK), length=hashlib.sha256().digest_size)
        return None if stored is None else stored.hex()

    def _read_block(self, name: str, block: int) -> bytes:
        """Read a block from memory, the disk cache or the network, in that order."""
        if (pending := self._fetcher().pending.get((name, block))) is not None:
            return pending.result()
        data = self.cache.read(self._block_path(name, block), length=self._block_length(name, block))
        return self._fetch_block(name, block) if data is None else data

    def _fetch_block(self, name: str, block: int) -> bytes:
        data = self.files.read(name, block * BLOCK, self._block_length(name, block))
        try:
            self.cache.write(self._block_path(name, block), data)
        except FileNotFoundError:
            pass  # another thread has just deleted the blocks of a damaged file
        except OSError as error:
            was_full, self._disk_full = self._disk_full, True
            if not was_full:
                log.warning(
                    "%s: the cache cannot store any more (%s). Reading from the network.", self.cache.path, error.strerror
                )
        return data

    def _block_length(self, name: str, block: int) -> int:
        return min(BLOCK, self.sizes[name] - block * BLOCK)

    def _block_path(self, name: str, block: int) -> Path:
        return self.folder / name / f"{block:08d}"

    def _fetcher(self) -> BlockFetcher:
        """Return this process's own fetcher. Start one if there is none, or if it has been stopped."""
        if self._process_fetcher is None or self._process_fetcher[0] != os.getpid() or self._process_fetcher[1].stopped.is_set():
            fits = sum(self.sizes.values()) <= WHOLE_FILES_LIMIT * self.cache.max_bytes
            fetcher = BlockFetcher(
                lambda block: self._fetch_block(*block),
                threads=self.files.settings.threads,
                background_job=self.fetch_whole_files if fits else None,
            )
            self._process_fetcher = os.getpid(), fetcher
        return self._process_fetcher[1]

    def __getstate__(self) -> dict[str, object]:
        """Leave out the threads: each worker process starts its own."""
        return {**self.__dict__, "_process_fetcher": None}

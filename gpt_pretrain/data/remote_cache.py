"""A cache on the local disk for a folder behind a URL.

Training reads windows at random positions, so small blocks are fetched, which takes little longer than fetching a window alone.
If the whole folder fits into the cache, its files are fetched one after another in the background and replace their blocks.
Several processes may share a cache: files appear in it complete, and deleted ones are fetched again.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shutil
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

from gpt_pretrain.data.disk_cache import ChecksumError, DiskCache
from gpt_pretrain.data.fetching import BlockFetcher, pause
from gpt_pretrain.data.files import LocalFiles
from gpt_pretrain.data.remote import RemoteFiles
from gpt_pretrain.errors import UserError

BLOCK = 1 << 16  # bytes
PIECE = 1 << 23  # bytes of a whole file that one request asks for
TOUCH_INTERVAL = 30.0  # seconds between two marks of a whole file as used
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
        self.cache = DiskCache(cache_dir / "remote", max_bytes=files.settings.cache_bytes)
        self.folder = self.cache.path / hashlib.sha256(f"{files.location} {key}".encode()).hexdigest()[:32]
        self.whole_files = LocalFiles(self.folder / "whole")
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
            os.utime(self.whole_files.folder / name)  # marks the whole file as recently used
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
                    if held and not path.exists():
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
                self.cache.write_pieces(path, pieces, sha256=self.checksums.get(name), n_bytes=size)
                return
            except ChecksumError:
                shutil.rmtree(self.folder / name, ignore_errors=True)  # the blocks of the file
                if attempt == 2:
                    self._damage = f"data.path={self.location}: {name} is damaged: its checksum differs. Copy it there again."

    def _fetch_piece(self, name: str, start: int) -> bytes:
        pause(0)  # ends the thread here if it has been stopped
        return self.files.read(name, start, PIECE)

    def _read_block(self, name: str, block: int) -> bytes:
        """Read a block from memory, the disk cache or the network, in that order."""
        if (pending := self._fetcher().pending.get((name, block))) is not None:
            return pending.result()
        data = self.cache.read(self._block_path(name, block))
        if data is not None and len(data) == self._block_length(name, block):
            return data
        return self._fetch_block(name, block)

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
        """Return this process's own fetcher; start it if there is none or it has been stopped."""
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

"""Folders behind a URL: read over fsspec with patience, and through a cache on this machine.

Windows are read at random places, so that small blocks are fetched, which takes little longer than a window alone. Where the
whole folder fits into the cache, its files are fetched one after another beside that, and replace their blocks when they are
there. Several processes may use a cache at once: files appear in it whole, and one that is given up is fetched anew.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from gpt_pretrain.config.schema import RemoteSettings
from gpt_pretrain.data.cache_folder import CacheFolder, ChecksumError
from gpt_pretrain.data.fetching import Fetchers, StoppedError, pause, within
from gpt_pretrain.data.files import LocalFiles
from gpt_pretrain.errors import UserError

BLOCK = 1 << 16  # bytes
PIECE = 1 << 23  # bytes of a whole file that are asked for at once
TOUCH_EVERY = 30.0  # seconds
FITS = 0.8  # of the cache's size, up to which whole files are fetched
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds between two tries

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class RemoteFiles:
    """A folder behind a URL. What fails is tried again; what takes too long is given up and tried again.

    Args:
        url: the folder.
        settings: how patient to be.
    """

    remote = True

    def __init__(self, url: str, settings: RemoteSettings) -> None:
        self.place = url.rstrip("/")
        self.settings = settings
        self._opened: tuple[int, Any, str] | None = None  # the process, fsspec's file system, and the folder in it
        self._sizes: dict[str, int] = {}
        self._listed: list[str] | None = None

    def names(self) -> list[str]:
        if self._listed is None:
            try:
                found = self._patiently(lambda: self._fs.ls(self._path(""), detail=True), "")
            except FileNotFoundError:
                raise UserError(f"data.path={self.place}: there is no such folder.") from None
            sizes = {one["name"].rstrip("/").rsplit("/", 1)[-1]: one["size"] for one in found if one["type"] == "file"}
            self._sizes |= {name: size for name, size in sizes.items() if size is not None}
            self._listed = sorted(sizes)
        return self._listed

    def size(self, name: str) -> int | None:
        lists = not self.place.startswith("http")  # whose folders often cannot be listed
        if name not in self._sizes and not (lists and name not in self.names()):
            with suppress(FileNotFoundError):
                self._sizes[name] = int(self._patiently(lambda: self._fs.info(self._path(name))["size"], name))
        return self._sizes.get(name)

    def read(self, name: str, start: int, count: int) -> bytes:
        size = self.size(name)
        if size is None:
            raise UserError(f"{self.place}/{name} is not there any more.")
        end = min(start + count, size)
        return self._patiently(lambda: self._whole(name, start, end), name) if end > start else b""

    def prefetch(self, name: str, start: int, count: int) -> None:
        """Without a cache there is nowhere to put it."""

    def _whole(self, name: str, start: int, end: int) -> bytes:
        data: bytes = self._fs.cat_file(self._path(name), start=start, end=end)
        if len(data) > end - start:
            raise UserError(
                f"{self.place}: this server sends whole files where parts are asked for (it knows no Range), so shards cannot be "
                "read from it. Copy them, or use another server."
            )
        if len(data) != end - start:
            raise OSError(f"{len(data):,} bytes came instead of {end - start:,}")
        return data

    def _patiently(self, job: Callable[[], Result], name: str) -> Result:
        """Do something over the network, again and again if need be.

        Raises:
            FileNotFoundError: at once.
            UserError: when it is forbidden, or the last try has failed.
        """
        where = f"{self.place}/{name}".rstrip("/")
        for tries in range(1, self.settings.retries + 2):
            try:
                return within(self.settings.timeout, job)
            except (FileNotFoundError, UserError, StoppedError):
                raise
            except PermissionError as error:
                raise UserError(f"{where} may not be read: {error or 'access denied'}.") from error
            except Exception as error:  # each of fsspec's file systems has its own kinds
                if "Credentials" in type(error).__name__:  # botocore's
                    raise UserError(f"{where}: {error}. Without any, of public data: +data.remote.options.anon=true") from error
                problem = f"{where}: {type(error).__name__}: {str(error).strip().rstrip('.') or 'no reason given'}"
                if tries > self.settings.retries:
                    raise UserError(f"{problem}. That was the last of {tries} tries (data.remote.retries).") from error
                seconds = min(FIRST_PAUSE * 2 ** (tries - 1), LONGEST_PAUSE)
                if tries > 1:  # once is nothing out of the ordinary
                    log.info("%s; it is tried again in %g s", problem, seconds)
                pause(seconds)
        raise AssertionError

    @property
    def _fs(self) -> Any:
        """fsspec's file system, of this process alone."""
        return self._open()[1]

    def _path(self, name: str) -> str:
        return f"{self._open()[2]}/{name}".rstrip("/")

    def _open(self) -> tuple[int, Any, str]:
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                options = {"skip_instance_cache": True, "use_listings_cache": False, **self.settings.options}
                fs, path = fsspec.core.url_to_fs(self.place, **options)
            except (ImportError, ValueError) as error:
                raise UserError(
                    f"data.path={self.place}: {str(error).rstrip('.')}. For s3:// there is pip install -e '.[remote]'; fsspec's "
                    "documentation names the packages for others."
                ) from error
            self._opened = os.getpid(), fs, path.rstrip("/")
        return self._opened

    def __getstate__(self) -> dict[str, object]:
        """Loader processes open a file system of their own."""
        return {**self.__dict__, "_opened": None}


class CachedFiles:
    """A folder behind a URL, read through a cache.

    Args:
        files: the folder.
        key: what tells it and its content from others.
        cache_dir: where the cache is.
        checksums: of the files that will be read, SHA-256 in hexadecimal, where they are known.
    """

    remote = True

    def __init__(self, files: RemoteFiles, *, key: str, cache_dir: Path, checksums: dict[str, str | None]) -> None:
        self.files = files
        self.place = files.place
        self.sizes = {name: files.size(name) or 0 for name in checksums}
        self.checksums = checksums
        self.cache = CacheFolder(cache_dir / "remote", most_bytes=files.settings.cache_bytes)
        self.folder = self.cache.path / hashlib.sha256(f"{files.place} {key}".encode()).hexdigest()[:32]
        self.whole = LocalFiles(self.folder / "whole")
        self._live: tuple[int, Fetchers] | None = None  # the process, and what fetches for it
        self._full = False
        self._damaged: str | None = None  # what is to be said of a file that is
        self._touched: dict[str, float] = {}  # whole files, and when

    def names(self) -> list[str]:
        return sorted(self.sizes)

    def size(self, name: str) -> int | None:
        return self.sizes.get(name)

    def read(self, name: str, start: int, count: int) -> bytes:
        if self._damaged is not None:
            raise UserError(self._damaged)
        with suppress(OSError):  # it is not there, or not any more
            return self.whole.read_file(name, start, count)
        end = min(start + count, self.sizes[name])
        blocks = [self._block(name, block) for block in range(start // BLOCK, -(-end // BLOCK))]
        first = start // BLOCK * BLOCK
        return b"".join(blocks)[start - first : end - first]

    def prefetch(self, name: str, start: int, count: int) -> None:
        """Begin to fetch the blocks of a stretch, and, the first time, whole files."""
        if time.monotonic() - self._touched.get(name, -math.inf) < TOUCH_EVERY:
            return
        with suppress(OSError):
            os.utime(self.whole.folder / name)  # which says that it is still wanted
            self._touched[name] = time.monotonic()
            return
        fetchers = self._fetchers()
        end = min(start + count, self.sizes[name])
        for block in range(start // BLOCK, -(-end // BLOCK)):
            if not self._path(name, block).exists():
                fetchers.begin((name, block))

    def _block(self, name: str, block: int) -> bytes:
        """The bytes of a block, from wherever they are soonest had."""
        if (coming := self._fetchers().coming.get((name, block))) is not None:
            return coming.result()
        data = self.cache.read(self._path(name, block))
        return data if data is not None and len(data) == self._length(name, block) else self._fetch(name, block)

    def _fetch(self, name: str, block: int) -> bytes:
        data = self.files.read(name, block * BLOCK, self._length(name, block))
        try:
            self.cache.write(self._path(name, block), data)
        except OSError as error:
            told, self._full = self._full, True
            if not told:
                log.warning("%s: nothing more can be kept (%s); it is read over the network.", self.cache.path, error.strerror)
        return data

    def _length(self, name: str, block: int) -> int:
        return min(BLOCK, self.sizes[name] - block * BLOCK)

    def _path(self, name: str, block: int) -> Path:
        return self.folder / name / f"{block:08d}"

    def _fetchers(self) -> Fetchers:
        """This process's own."""
        if self._live is None or self._live[0] != os.getpid() or self._live[1].stopped.is_set():
            beside = self.fetch_whole_files if sum(self.sizes.values()) <= FITS * self.cache.most_bytes else None
            fetchers = Fetchers(lambda one: self._fetch(*one), threads=self.files.settings.threads, beside=beside)
            self._live = os.getpid(), fetchers
        return self._live[1]

    def fetch_whole_files(self) -> None:
        """Fetch one file after another into the cache, each by one process of this machine only."""
        for name, size in self.sizes.items():
            path = self.whole.folder / name
            try:
                with self.cache.only_one(path) as mine:
                    if mine and not path.exists():
                        self._fetch_whole(name, size, path)
            except (OSError, UserError) as error:
                log.warning("%s/%s could not be fetched as a whole (%s); from here on blocks are.", self.place, name, error)
                return

    def _fetch_whole(self, name: str, size: int, path: Path) -> None:
        """Fetch a file; where it comes damaged twice, it is so, and nothing more is read."""
        for again in (True, False):
            try:
                pieces = map(partial(self._piece, name), range(0, size, PIECE))
                self.cache.write_pieces(path, pieces, sha256=self.checksums.get(name), n_bytes=size)
                return
            except ChecksumError:
                shutil.rmtree(self.folder / name, ignore_errors=True)  # its blocks
                if not again:
                    self._damaged = f"data.path={self.place}: {name} is damaged: its checksum differs. Copy it there anew."
                    return

    def _piece(self, name: str, start: int) -> bytes:
        pause(0)  # which ends here what is not wanted any more
        return self.files.read(name, start, PIECE)

    def __getstate__(self) -> dict[str, object]:
        """Loader processes have threads of their own."""
        return {**self.__dict__, "_live": None}

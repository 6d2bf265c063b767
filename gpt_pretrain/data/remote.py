"""Folders behind a URL, read over fsspec with time limits and retries."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn, TypeVar

import fsspec
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from gpt_pretrain.config.schema import RemoteSettings
from gpt_pretrain.data.fetching import StoppedError, pause, run_with_timeout
from gpt_pretrain.errors import UserError

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds between two attempts

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class RemoteFiles:
    """The files of a folder behind a URL. Requests that fail or take too long are repeated.

    Args:
        url: The folder.
        settings: Time limit, number of retries and fsspec's options.
    """

    remote = True

    def __init__(self, url: str, settings: RemoteSettings) -> None:
        self.location = url.rstrip("/")
        self.settings = settings
        self._opened: tuple[int, Any, str] | None = None  # process id, fsspec's file system, and the folder's path in it
        self._sizes: dict[str, int] = {}
        self._names: list[str] | None = None

    def names(self) -> list[str]:
        if self._names is None:
            try:
                entries = self._retry(lambda: self._fs.ls(self._path(""), detail=True), "")
            except FileNotFoundError:
                raise UserError(f"data.path={self.location}: there is no such folder.") from None
            sizes = {entry["name"].rstrip("/").rsplit("/", 1)[-1]: entry["size"] for entry in entries if entry["type"] == "file"}
            self._sizes |= {name: size for name, size in sizes.items() if size is not None}
            self._names = sorted(sizes)
        return self._names

    def size(self, name: str) -> int | None:
        can_list = not self.location.startswith("http")  # HTTP servers often do not list their folders
        if name not in self._sizes and not (can_list and name not in self.names()):
            with suppress(FileNotFoundError):
                self._sizes[name] = int(self._retry(lambda: self._fs.info(self._path(name))["size"], name))
        return self._sizes.get(name)

    def read(self, name: str, start: int, count: int) -> bytes:
        size = self.size(name)
        if size is None:
            raise UserError(f"{self.location}/{name} no longer exists.")
        end = min(start + count, size)
        return self._retry(lambda: self._read_range(name, start, end), name) if end > start else b""

    def prefetch(self, name: str, start: int, count: int) -> None:
        """Do nothing: without a cache there is nowhere to store the bytes."""

    def _read_range(self, name: str, start: int, end: int) -> bytes:
        data: bytes = self._fs.cat_file(self._path(name), start=start, end=end)
        if len(data) > end - start:
            raise UserError(
                f"{self.location}: the server ignores the Range header and sends whole files, so shards cannot be read from it. "
                "Copy them to a local disk, or use another server."
            )
        if len(data) != end - start:
            raise OSError(f"received {len(data):,} bytes instead of {end - start:,}")
        return data

    def _retry(self, job: Callable[[], Result], name: str) -> Result:
        """Return the result of a request, and repeat it if it fails.

        Raises:
            FileNotFoundError: If there is no such file; this is not retried.
            UserError: If access is denied, or the last attempt fails.
        """
        location = f"{self.location}/{name}".rstrip("/")
        retrying = Retrying(
            sleep=pause,
            stop=stop_after_attempt(self.settings.retries + 1),
            wait=wait_exponential(multiplier=FIRST_PAUSE, max=LONGEST_PAUSE),
            retry=retry_if_exception(_is_temporary),
            before_sleep=partial(_log_failure, location),
            retry_error_callback=partial(_give_up, location),
        )
        try:
            result: Result = retrying(run_with_timeout, job, seconds=self.settings.timeout)
            return result
        except PermissionError as error:
            raise UserError(f"{location} may not be read: {error or 'access denied'}.") from error
        except Exception as error:
            if _lacks_credentials(error):
                raise UserError(
                    f"{location}: {error}. To read public data without credentials, add +data.remote.options.anon=true"
                ) from error
            raise

    @property
    def _fs(self) -> Any:
        return self._open()[1]

    def _path(self, name: str) -> str:
        return f"{self._open()[2]}/{name}".rstrip("/")

    def _open(self) -> tuple[int, Any, str]:
        """Return this process's own file system: fsspec's must not be shared with forked processes."""
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                options = {"skip_instance_cache": True, "use_listings_cache": False, **self.settings.options}
                fs, path = fsspec.core.url_to_fs(self.location, **options)
            except (ImportError, ValueError) as error:
                raise UserError(
                    f"data.path={self.location}: {str(error).rstrip('.')}. For s3:// run pip install -e '.[remote]'; fsspec's "
                    "documentation names the packages for other protocols."
                ) from error
            self._opened = os.getpid(), fs, path.rstrip("/")
        return self._opened

    def __getstate__(self) -> dict[str, object]:
        """Leave out the file system: each worker process opens its own."""
        return {**self.__dict__, "_opened": None}


def _is_temporary(error: BaseException) -> bool:
    """Return whether another attempt may succeed. fsspec's file systems raise exceptions of many kinds."""
    final = (FileNotFoundError, PermissionError, UserError, StoppedError)
    return isinstance(error, Exception) and not isinstance(error, final) and not _lacks_credentials(error)


def _lacks_credentials(error: Exception) -> bool:
    return "Credentials" in type(error).__name__  # botocore's NoCredentialsError and similar ones


def _describe_failure(location: str, state: RetryCallState) -> str:
    error = state.outcome.exception() if state.outcome is not None else None
    return f"{location}: {type(error).__name__}: {str(error).strip().rstrip('.') or 'no reason given'}"


def _log_failure(location: str, state: RetryCallState) -> None:
    if state.attempt_number > 1:  # a single failure is not unusual
        log.info("%s. Trying again in %g s.", _describe_failure(location, state), state.upcoming_sleep)


def _give_up(location: str, state: RetryCallState) -> NoReturn:
    error = state.outcome.exception() if state.outcome is not None else None
    raise UserError(
        f"{_describe_failure(location, state)}. All {state.attempt_number} attempts failed (data.remote.retries)."
    ) from error

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
from gpt_pretrain.data.files import FILE_NAME
from gpt_pretrain.data.remote.fetching import StoppedError, pause
from gpt_pretrain.data.remote.web import why_unreachable
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.deadlines import run_with_timeout
from gpt_pretrain.system.urls import check_url, hide_secrets, secret_parts, without_secrets

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds between two attempts
DENIED = (401, 403)  # answers of a web server that asks for a user or a key, or refuses them
DENIAL = (
    "The server refuses access ({}). Type what it asks for: a user in the URL, as in https://USER:PASSWORD@HOST, or a header: "
    """'+data.remote.options.headers.Authorization="Bearer KEY"'"""
)
BUSY = (408, 425, 429)  # answers of a web server that ask for another attempt later
# Options that make a file system read through another one, store files in a folder, or call a function. The names of all file
# systems are refused as well, since fsspec would take them for options of one link of a chained URL.
REFUSED_OPTIONS = {
    *("protocol", "target_protocol", "target_options", "remote_protocol", "remote_options", "fo", "fs", "fss", "references"),
    *("cache_storage", "same_names", "cache_check", "check_files", "expiry_time", "get_client", "loop", "asynchronous"),
    *("skip_instance_cache", "use_listings_cache", "cache_mapper", "compression", "auto_mkdir"),
}

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class RemoteFiles:
    """The files of a folder behind a URL. Requests that fail or take too long are repeated.

    A server that cannot be reached is waited for only if it has answered before: otherwise the URL or the network is the cause.

    Args:
        url: The folder.
        settings: Time limit, number of retries and fsspec's options.

    Attributes:
        denial: A sentence about files that the server refuses to show, which count as missing; empty if there are none.
    """

    remote = True

    def __init__(self, url: str, settings: RemoteSettings) -> None:
        check_url(url, setting="data.path")
        _check_options(settings.options)
        self.location = without_secrets(url.rstrip("/"))
        self.settings = settings
        self._url = url.rstrip("/")
        self._opened: tuple[int, Any, str] | None = None  # process id, fsspec's file system, and the folder's path in it
        self._sizes: dict[str, int] = {}
        self._names: list[str] | None = None
        self._has_answered = self._has_read = False
        self.denial = ""

    def names(self) -> list[str]:
        if self._names is None:
            try:
                sizes = self._retry(self._list, "")
            except FileNotFoundError:
                remedy = self.denial or "Check the URL."
                raise UserError(f"data.path={self.location}: there is no such folder. {remedy}") from None
            self._sizes |= {name: size for name, size in sizes.items() if size is not None}
            self._names = sorted(name for name in sizes if FILE_NAME.fullmatch(name))
        return self._names

    def size(self, name: str) -> int | None:
        if FILE_NAME.fullmatch(name.removeprefix(".work/")) is None:
            return None
        can_list = not self.location.startswith("http")  # HTTP servers often do not list their folders
        if name not in self._sizes and not (can_list and name not in self.names()):
            with suppress(FileNotFoundError):
                size = self._retry(lambda: self._stated_size(name), name)
                if size is None:
                    raise UserError(f"{self.location}/{name}: the server does not state its size. Copy it to a local disk.")
                self._sizes[name] = int(size)
        return self._sizes.get(name)

    def read(self, name: str, start: int, count: int) -> bytes:
        size = self.size(name)
        if size is None:
            raise UserError(f"{self.location}/{name} no longer exists. Restore it and resume the run.")
        end = min(start + count, size)
        return self._retry(lambda: self._read_range(name, start, end), name) if end > start else b""

    def prefetch(self, name: str, start: int, count: int) -> None:
        """Do nothing: without a cache there is nowhere to store the bytes."""

    def _list(self) -> dict[str, int | None]:
        """Return the files in the folder, each with its size, if it is known."""
        if self._url.startswith("http"):
            from gpt_pretrain.data.remote.http_session import names_in_page

            return dict.fromkeys(names_in_page(self._fs.cat_file(self._path("") + "/"), url=self._path("")))
        entries = self._fs.ls(self._path(""), detail=True)
        return {entry["name"].rstrip("/").rsplit("/", 1)[-1]: entry["size"] for entry in entries if entry["type"] == "file"}

    def _stated_size(self, name: str) -> int | None:
        try:
            return self._fs.info(self._path(name))["size"]  # type: ignore[no-any-return]
        except FileNotFoundError as error:
            # fsspec's file system of web servers raises this error for all others too (fsspec 2026.9).
            cause = error.__cause__
            status = getattr(cause, "status", 0)
            is_missing = 400 <= status < 500 and status not in BUSY
            if status in DENIED:  # A server that does not list its folders may answer so for a missing file too.
                self.denial = DENIAL.format(status)
            if cause is None or isinstance(cause, FileNotFoundError) or is_missing:
                raise
            raise cause from cause.__cause__

    def _read_range(self, name: str, start: int, end: int) -> bytes:
        data: bytes = self._fs.cat_file(self._path(name), start=start, end=end)
        if len(data) > end - start:
            raise UserError(
                f"{self.location}: the server ignores the Range header and sends whole files, so shards cannot be read from it. "
                "Copy them to a local disk, or use another server."
            )
        if len(data) != end - start:
            raise OSError(f"received {len(data):,} bytes instead of {end - start:,}")
        self._has_read = True
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
            retry=retry_if_exception(self._may_recover),
            before_sleep=partial(self._log_failure, location),
            retry_error_callback=partial(self._give_up, location),
        )
        try:
            result: Result = retrying(
                run_with_timeout, self._bounded(job), seconds=self.settings.timeout, setting="data.remote.timeout"
            )
            self._has_answered = True
            return result
        # A cause would show the whole URL in a traceback.
        except PermissionError as error:
            reason = self._hide(error).rstrip(".") or "access denied"
            raise UserError(f"{location} may not be read: {reason}. Check its permissions and your keys.") from None
        except FileNotFoundError:
            self._has_answered = True
            raise FileNotFoundError(location) from None
        except Exception as error:
            if not self._has_answered and (unreachable := why_unreachable(error)) is not None:
                raise UserError(f"{self.location}: {unreachable}. Check the URL and the network of this machine.") from None
            if (status := getattr(error, "status", None)) in DENIED:
                raise UserError(f"{location}: {DENIAL[0].lower()}{DENIAL[1:].format(status)}") from None
            if _lacks_credentials(error):
                raise UserError(
                    f"{location}: {self._hide(error)}. To read public data without credentials, add "
                    "+data.remote.options.anon=true"
                ) from None
            raise

    def _may_recover(self, error: BaseException) -> bool:
        # Some servers refuse access for a while if they are asked too often.
        if getattr(error, "status", None) in DENIED and not self._has_read:
            return False
        return _is_temporary(error) and (self._has_answered or why_unreachable(error) is None)

    def _bounded(self, job: Callable[[], Result]) -> Callable[[], Result]:
        """Return a job that limits the answers of the hub. The clients of other file systems have limits of their own."""
        if not self._url.startswith("hf://"):
            return job
        from gpt_pretrain.data.remote.hub_session import receive_bounded

        return partial(receive_bounded, job)

    def _describe_failure(self, location: str, state: RetryCallState) -> str:
        error = state.outcome.exception() if state.outcome is not None else None
        reason = self._hide(error).strip().rstrip(".") or "no reason given"
        return f"{location}: {reason}"

    def _log_failure(self, location: str, state: RetryCallState) -> None:
        if state.attempt_number > 1:  # a single failure is not unusual
            log.info("%s. Trying again in %g s.", self._describe_failure(location, state), state.upcoming_sleep)

    def _give_up(self, location: str, state: RetryCallState) -> NoReturn:
        tries = f"All {state.attempt_number} attempts failed" if state.attempt_number > 1 else "It was tried once"
        raise UserError(f"{self._describe_failure(location, state)}. {tries} (data.remote.retries={self.settings.retries}).")

    def _hide(self, error: BaseException | None) -> str:
        """Return an error's message without passwords and signatures."""
        return hide_secrets(str(error), known=[*secret_parts(self._url), *_texts(self.settings.options)])

    @property
    def _fs(self) -> Any:
        return self._open()[1]

    def _path(self, name: str) -> str:
        return f"{self._open()[2]}/{name}".rstrip("/")

    def _open(self) -> tuple[int, Any, str]:
        """Return this process's own file system: fsspec's must not be shared with forked processes."""
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                fs, path = open_file_system(self._url, self.settings.options)
            except (ImportError, ValueError) as error:
                raise UserError(
                    f"data.path={self.location}: {self._hide(error).rstrip('.')}. For s3://, run: pip install "
                    "'gpt-pretrain[remote]'. fsspec's documentation names the packages for other protocols."
                ) from None
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


def open_file_system(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    """Return fsspec's file system for a URL whose scheme and options have been checked, and the path in it."""
    scheme = url.partition("://")[0]
    chosen: dict[str, Any] = {**options, "skip_instance_cache": True, "use_listings_cache": False}
    if scheme in ("http", "https"):
        from gpt_pretrain.data.remote.http_session import open_session

        chosen["get_client"] = open_session
    elif scheme == "s3":
        with suppress(ImportError):  # fsspec says what is missing
            from gpt_pretrain.data.remote.s3_session import BoundedS3Session

            chosen["config_kwargs"] = {**(options.get("config_kwargs") or {}), "http_session_cls": BoundedS3Session}
    elif scheme in ("gs", "gcs"):
        with suppress(ImportError):
            from gpt_pretrain.data.remote.http_session import bounded_options

            chosen["session_kwargs"] = {**(options.get("session_kwargs") or {}), **bounded_options()}
    fs, path = fsspec.core.url_to_fs(url, **chosen)
    assert type(fs) is fsspec.get_filesystem_class(scheme), "neither the URL nor an option may lead to another file system"
    return fs, path


def _check_options(options: dict[str, Any]) -> None:
    """Check the names of the options of a file system.

    Raises:
        UserError: If one of them leads to another file system or folder.
    """
    refused = REFUSED_OPTIONS | set(fsspec.available_protocols())
    if found := [name for name in options if str(name) in refused]:
        raise UserError(
            f"data.remote.options.{name}: this option can lead to other places than data.path names, so it is not passed on to "
            "fsspec. Remove it. Access keys, an endpoint or anon=true are possible."
            for name in found
        )


def _texts(value: Any) -> list[str]:
    """List the texts in nested options."""
    if isinstance(value, dict):
        return [text for part in value.values() for text in _texts(part)]
    if isinstance(value, list | tuple):
        return [text for part in value for text in _texts(part)]
    return [value] if isinstance(value, str) else []

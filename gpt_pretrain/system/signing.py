"""Sign files, so that the program recognizes later what it has written for this user.

A checksum shows damage, but anybody can compute it. A signature needs the user's key, a random number that is made at the first
use and never leaves the user's account.
"""

from __future__ import annotations

import hmac
import logging
import os
import secrets
from contextlib import suppress
from functools import cache
from pathlib import Path

from gpt_pretrain.system.environment import user_data_folder
from gpt_pretrain.system.files import copy_to_free_name

KEY_BYTES = 32
SIGNATURE_BYTES = 32

log = logging.getLogger(__name__)


def signature(content: bytes, *, purpose: str) -> bytes:
    """Return this user's signature of a content.

    Args:
        purpose: The use of the content. A signature for one purpose is not valid for another.
    """
    return hmac.digest(_key(), purpose.encode() + b"\0" + content, "sha256")


def has_signature(content: bytes, signed: bytes, *, purpose: str) -> bool:
    """Return whether `signed` is this user's signature of a content for this purpose."""
    return hmac.compare_digest(signature(content, purpose=purpose), signed)


def has_stored_key() -> bool:
    """Return whether the user's key is stored, so that later starts recognize what this one signs."""
    try:
        return _read_key(key_file()) is not None
    except OSError:
        return False


def key_file() -> Path:
    """Return the path of the user's key.

    Raises:
        OSError: If the user has no home folder.
    """
    return user_data_folder() / "signing.key"


@cache
def _key() -> bytes:
    """Return the user's key. Make one if there is none."""
    path = None
    try:
        path = key_file()
        if (key := _read_key(path)) is None:
            _make_key(path)
            key = _read_key(path)
    except OSError as error:
        key = None
        if path is None or not os.path.lexists(path):
            log.warning(
                "%s cannot be written (%s), so later starts will not recognize the files that this one makes. Make its folder "
                "writable, or set XDG_DATA_HOME to one that is.",
                path or "The key for signatures",
                error.strerror or error,
            )
            return secrets.token_bytes(KEY_BYTES)
        log.debug("%s: %s", path, error)
    if key is None:
        log.warning(
            "%s cannot be used, so this start does not recognize the files that earlier ones have made. It should be a file of "
            "%d bytes that belongs to you.",
            path,
            KEY_BYTES,
        )
        return secrets.token_bytes(KEY_BYTES)
    return key


def _read_key(path: Path) -> bytes | None:
    """Return the key in a file, which is made private first. Return None if the file is missing or holds no key.

    Raises:
        OSError: If the file cannot be read, or belongs to another user.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with open(handle, "rb") as stream:
        status = os.fstat(handle)
        if status.st_mode & 0o077:
            try:
                os.fchmod(handle, 0o600)
            except OSError:
                if status.st_uid != os.geteuid():
                    raise  # the file of another user; other failures come from file systems that store no permissions
        key = stream.read(KEY_BYTES + 1)
    return key if len(key) == KEY_BYTES else None


def _make_key(path: Path) -> None:
    """Write a new key, unless another process has just done so."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(secrets.token_bytes(KEY_BYTES))
        with suppress(FileExistsError):
            copy_to_free_name(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)

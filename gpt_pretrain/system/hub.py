"""Download a model's files from the Hugging Face hub, with resumption and a checksum.

The files are kept in the cache of huggingface_hub, which honors HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE. The download
itself is this module's own:

- It resumes after an interruption, even in a later process.
- It ends at the size that the hub states, and a large file enters the cache only with the SHA-256 that the hub states.
- An answer of the hub becomes part of a path only if it is a hexadecimal number. huggingface_hub 2.4 does not check this.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from huggingface_hub import (
    _CACHED_NO_EXIST,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers

from gpt_pretrain.errors import UserError, first_line
from gpt_pretrain.system.deadlines import run_with_timeout
from gpt_pretrain.system.files import write_text
from gpt_pretrain.system.hub_telemetry import disable_telemetry
from gpt_pretrain.system.hub_transfer import ANSWER_SECONDS, receive_file

GPT2_MODELS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
MAX_SMALL_BYTES = 20_000_000  # bytes of a file without a SHA-256; the hub states one for large files only
BAD_COMMIT = "the commit {!r}, which is not 40 hexadecimal digits"
BAD_ANSWER = "{}: {} states {}. Nothing was downloaded. Check HF_ENDPOINT."
GIT_SHA1, SHA256 = re.compile("[0-9a-f]{40}"), re.compile("[0-9a-f]{64}")


class HubFileMissingError(UserError):
    """A model has no such file.

    Attributes:
        certain: Whether the hub has said so. If not, the hub could not be asked, and the cache does not hold the file.
    """

    def __init__(self, problem: str, *, certain: bool) -> None:
        super().__init__(problem)
        self.certain = certain


def fetch_first(repo_id: str, files: Sequence[str]) -> Path:
    """Return a local copy of a model's file: the first one in a list that exists.

    Raises:
        UserError: If it has none of them, or as in `fetch`.
    """
    missing: list[HubFileMissingError] = []
    for file in files:
        try:
            return fetch(repo_id, file)
        except HubFileMissingError as error:
            missing.append(error)
    if uncertain := [error for error in missing if not error.certain]:
        raise uncertain[0]
    raise HubFileMissingError(f"{repo_id}: this model has none of these files on the hub: {', '.join(files)}.", certain=True)


def fetch(repo_id: str, file: str) -> Path:
    """Return a local copy of a model's file on the hub. It is downloaded unless the cache holds its newest version.

    Raises:
        HubFileMissingError: If the model has no such file.
        UserError: If there is no such model or file, the hub cannot be reached, or the checksum does not match.
    """
    try:
        refusal = _fill_cache(repo_id, file)
        try:
            return Path(hf_hub_download(repo_id, file, local_files_only=True))
        except LocalEntryNotFoundError:
            raise refusal or LocalEntryNotFoundError(file) from None
    except UserError:
        raise
    # Errors of the network, the HTTP library and the disk have no common class.
    except Exception as error:
        raise _explain_failure(error, repo_id, file) from error


def _explain_failure(error: Exception, repo_id: str, file: str) -> UserError:
    """Return the message for a file of the hub that could not be fetched."""
    if isinstance(error, GatedRepoError):
        return UserError(
            f"{repo_id}: access to this model requires agreement to its terms on the hub. Agree to them there and set HF_TOKEN."
        )
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        return UserError(
            f"{repo_id}: there is no such file or folder here, and no such model on the hub ({constants.ENDPOINT})."
            f"{_near_model(repo_id)} GPT-2's models are {', '.join(GPT2_MODELS[:-1])} and {GPT2_MODELS[-1]}."
        )
    if isinstance(error, LocalEntryNotFoundError):
        reason = (
            "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached or returns an error"
        )
        return HubFileMissingError(
            f"{repo_id}: there is no such file or folder here, the model's {file} is not in the cache, and {reason}."
            f"{_near_model(repo_id)} Download it once with a connection, or name a folder that contains it.",
            certain=False,
        )
    if isinstance(error, EntryNotFoundError):
        return HubFileMissingError(f"{repo_id}: this model has no {file} on the hub, so it cannot be read.", certain=True)
    return UserError(
        f"{repo_id}: {file} could not be downloaded ({type(error).__name__}: {first_line(error, otherwise='no reason given')}). "
        "Try again; the download resumes."
    )


def _near_model(repo_id: str) -> str:
    """Return a question with the model of GPT-2 that a name without an owner is most like, or "" if it is like none."""
    near = get_close_matches(repo_id.lower(), GPT2_MODELS, n=1)
    return f" Did you mean {near[0]}?" if near and near[0] != repo_id else ""


def fetch_if_present(repo_id: str, file: str) -> Path | None:
    """Return what `fetch` returns, or None if the model has no such file. The cache notes this for times without a network.

    Raises:
        UserError: If `fetch` fails for any other reason.
    """
    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo_id, repo_type="model"))
    try:
        return fetch(repo_id, file)
    except UserError as error:
        cause = error.__cause__
        if isinstance(cause, LocalEntryNotFoundError):
            if try_to_load_from_cache(repo_id, file) is _CACHED_NO_EXIST:
                return None
            raise
        if not isinstance(cause, EntryNotFoundError):
            raise
    with suppress(OSError):  # a cache may be read-only
        commit = (folder / "refs" / constants.DEFAULT_REVISION).read_text(encoding="utf-8")
        if GIT_SHA1.fullmatch(commit):
            marker = folder / ".no_exist" / commit / file
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
    return None


def check_hub_answer(name: str, etag: str | None, commit: str | None, size: int | None) -> tuple[str, str, int]:
    """Return the checksum, the commit and the size that the hub states for a file.

    Raises:
        UserError: If one of them is missing or impossible.
    """
    if etag is None or not (GIT_SHA1.fullmatch(etag) or SHA256.fullmatch(etag)):
        problem = f"the checksum {etag!r}, which is neither 40 nor 64 hexadecimal digits"
    elif commit is None or not GIT_SHA1.fullmatch(commit):
        problem = BAD_COMMIT.format(commit)
    elif size is None or size < 0:
        problem = "no size"
    elif size > MAX_SMALL_BYTES and not SHA256.fullmatch(etag):
        problem = f"{size:,} bytes, but no SHA-256, without which a file has at most {MAX_SMALL_BYTES:,} bytes"
    else:
        return etag, commit, size
    raise UserError(BAD_ANSWER.format(name, constants.ENDPOINT, problem))


def check_hub_commit(name: str, commit: object) -> None:
    """Check a commit that the hub states before it becomes part of a path.

    Raises:
        UserError: If it is impossible.
    """
    if not isinstance(commit, str) or not GIT_SHA1.fullmatch(commit):
        raise UserError(BAD_ANSWER.format(name, constants.ENDPOINT, BAD_COMMIT.format(commit)))


def _fill_cache(repo_id: str, file: str) -> HfHubHTTPError | None:
    """Download the newest version of a file to the library's cache, unless the cache holds it.

    Returns:
        The hub's error if it refuses, since the cache may hold an earlier version; otherwise None.

    Raises:
        EntryNotFoundError: If the model has no such file.
        UserError: If the hub's answer cannot be right.
    """
    url = hf_hub_url(repo_id, file)
    disable_telemetry()
    try:
        headers = build_hf_headers(headers={"Accept-Encoding": "identity"})
        stated = run_with_timeout(lambda: get_hf_file_metadata(url, headers=headers), seconds=ANSWER_SECONDS)
    except EntryNotFoundError:
        raise
    except (RepositoryNotFoundError, GatedRepoError) as error:
        return error
    # Without a network, the HTTP library raises errors of its own.
    except Exception:
        return None
    name = f"{repo_id}: {file}"
    etag, commit, size = check_hub_answer(name, stated.etag, stated.commit_hash, stated.size)
    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo_id, repo_type="model"))
    if (folder / "snapshots" / commit / file).exists():
        with suppress(OSError):  # a cache may be read-only
            _set_newest(folder, commit)
        return None
    blob = folder / "blobs" / etag
    blob.parent.mkdir(parents=True, exist_ok=True)
    part = blob.with_name(f"{blob.name}.part")
    with WeakFileLock(part.with_suffix(".lock")):
        if not blob.exists():
            _check_space(name, folder, size)
            if not SHA256.fullmatch(etag):  # Without a SHA-256, the rest of one file could be added to another one.
                part.unlink(missing_ok=True)
            receive_file(url, part, size=size, headers=headers, label=f"{repo_id}/{file}")
            _check_content(name, part, etag)
            os.replace(part, blob)
        _add_to_snapshot(folder, commit, file, blob)
    return None


def _check_space(name: str, folder: Path, size: int) -> None:
    """Check that a file fits on the disk before any of it is written.

    Raises:
        UserError: If it does not.
    """
    if size > (free := shutil.disk_usage(folder).free):
        raise UserError(
            f"{name} has {size:,} bytes, but {folder} has room for {free:,}. Set HF_HOME to a folder on another disk."
        )


def _check_content(name: str, part: Path, etag: str) -> None:
    """Compare a downloaded file with the SHA-256 that the hub states, if it states one, and discard a damaged file.

    Raises:
        UserError: If they differ.
    """
    if not SHA256.fullmatch(etag):
        return
    with open(part, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != etag:
        part.unlink()
        raise UserError(
            f"{name} arrived damaged: its SHA-256 is {found}, but the hub states {etag}. It was discarded. Try again."
        )


def _add_to_snapshot(folder: Path, commit: str, file: str, blob: Path) -> None:
    """Add a file of the cache to the model's newest version, in the layout of huggingface_hub's cache."""
    pointer = folder / "snapshots" / commit / file
    pointer.parent.mkdir(parents=True, exist_ok=True)
    pointer.unlink(missing_ok=True)  # a link to a file that has been deleted
    try:
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:  # some file systems have no links
        shutil.copyfile(blob, pointer)
    _set_newest(folder, commit)


def _set_newest(folder: Path, commit: str) -> None:
    """Note the commit of a model's newest version. Without a network, huggingface_hub finds the files by it."""
    branch = folder / "refs" / constants.DEFAULT_REVISION
    branch.parent.mkdir(parents=True, exist_ok=True)
    if not branch.is_file() or branch.read_text(encoding="utf-8") != commit:
        write_text(branch, commit)

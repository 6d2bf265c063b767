"""Download a model's files from the Hugging Face hub, with resumption and a checksum.

huggingface_hub keeps the files in its cache and honors HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE. This module adds two
things: an interrupted download of a large file resumes, also in a later process, and a file enters the cache only if it has the
SHA-256 that the hub states.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from pathlib import Path
from typing import IO, Any

from huggingface_hub import constants, get_hf_file_metadata, get_session, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers, hf_raise_for_status
from tqdm import tqdm

from gpt_pretrain.errors import UserError

PARTIAL_CONTENT = 206
MAX_TRIES = 5  # in a row without any new bytes
PAUSE_SECONDS = 1.0
SHA256 = re.compile(r"[0-9a-f]{64}")


def fetch(repo_id: str, file: str) -> Path:
    """Return a local copy of a model's file on the hub, downloaded if the cache does not hold its newest version.

    Raises:
        UserError: If there is no such model or file, the hub cannot be reached, or the checksum does not match.
    """
    try:
        reached = _fill_cache(repo_id, file)
        return Path(hf_hub_download(repo_id, file, local_files_only=not reached))
    except GatedRepoError as error:
        raise UserError(
            f"{repo_id}: access to this model requires agreement to its terms on the hub. Agree to them there and set HF_TOKEN."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"{repo_id}: there is no such file or folder here, and no such model on the hub ({constants.ENDPOINT}). "
            "GPT-2's models are gpt2, gpt2-medium, gpt2-large and gpt2-xl."
        ) from error
    except LocalEntryNotFoundError as error:
        reason = (
            "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached or returns an error"
        )
        raise UserError(
            f"{repo_id}: there is no such file or folder here, the model's {file} is not in the cache, and {reason}. "
            "Download it once with a connection, or name a folder that contains it."
        ) from error
    except EntryNotFoundError as error:
        raise UserError(f"{repo_id}: this model has no {file} on the hub, so it cannot be read.") from error
    except UserError:
        raise
    # Errors of the network, the HTTP library and the disk have no common class.
    except Exception as error:
        raise UserError(
            f"{repo_id}: {file} could not be downloaded ({type(error).__name__}: {_short(error)}). "
            "Try again; the download resumes."
        ) from error


def _fill_cache(repo_id: str, file: str) -> bool:
    """Download a large file to the library's cache, where the library finds it by its checksum.

    Returns:
        True if the hub answers.
    """
    url = hf_hub_url(repo_id, file)
    try:
        headers = build_hf_headers(headers={"Accept-Encoding": "identity"})
        stated = get_hf_file_metadata(url, headers=headers)
    # The library's own download raises the specific error, such as a missing model.
    except HfHubHTTPError:
        return True
    # Without a network, the HTTP library raises errors of its own.
    except Exception:
        return False
    # The hub states no SHA-256 for small files.
    if stated.etag is None or not SHA256.fullmatch(stated.etag):
        return True
    blob = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo_id, repo_type="model"), "blobs", stated.etag)
    part = blob.with_name(f"{blob.name}.part")
    blob.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(part.with_suffix(".lock")):
        if blob.exists():
            return True
        _download(url, part, size=stated.size, headers=headers, label=f"{repo_id}/{file}")
        with open(part, "rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != stated.etag:
            part.unlink()
            raise UserError(
                f"{repo_id}: {file} arrived damaged: its SHA-256 is {found}, but the hub states {stated.etag}. "
                "It was discarded. Try again."
            )
        os.replace(part, blob)
    return True


def _download(url: str, part: Path, *, size: int | None, headers: dict[str, str], label: str) -> None:
    """Append the missing bytes of a URL to a file, and try again if the connection breaks.

    huggingface_hub's own download keeps nothing of an incomplete piece of 10 MB, and nothing of a killed process.
    """
    tries = MAX_TRIES
    with open(part, "ab") as stream, tqdm(total=size, desc=label, unit="B", unit_scale=True) as bar:
        while size is None or stream.tell() < size:
            start = stream.tell()
            bar.n = start
            try:
                _append(url, stream, bar, headers=headers | ({"Range": f"bytes={start}-"} if start else {}), size=size)
                if size is None:
                    return
            except (HfHubHTTPError, OSError):
                raise
            # A broken connection raises one of many errors of the HTTP library.
            except Exception:
                stream.flush()
                tries = MAX_TRIES if stream.tell() > start else tries - 1
                if tries == 0:
                    raise
                time.sleep(PAUSE_SECONDS)


def _append(url: str, stream: IO[bytes], bar: tqdm[Any], *, headers: dict[str, str], size: int | None) -> None:
    with get_session().stream("GET", url, headers=headers) as answer:
        hf_raise_for_status(answer)
        # A server that ignores the range sends the whole file.
        if answer.status_code != PARTIAL_CONTENT:
            stream.truncate(0)
            bar.reset(size)
        for piece in answer.iter_bytes():
            stream.write(piece)
            bar.update(len(piece))


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no reason given"]
    return lines[0][:200]

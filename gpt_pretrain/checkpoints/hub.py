"""Fetching a model's files from the Hugging Face hub: resumed after a break, and checked against the hub's checksum.

The library keeps the files in its cache and honours HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE. Two things are added: an
interrupted download of a large file goes on where it was in a later process too, and what was received is compared with the
SHA-256 that the hub names, before it takes its place in the cache.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from pathlib import Path

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
TRIES = 5  # in a row that bring nothing
PAUSE_SECONDS = 1.0
SHA256 = re.compile(r"[0-9a-f]{64}")


def fetch(repo_id: str, file: str) -> Path:
    """A file of a model on the hub, from the cache if it is there and still the newest.

    Raises:
        UserError: when there is no such model or file, the hub cannot be reached, or what it sent is not what it promised.
    """
    try:
        reached = _fill_cache(repo_id, file)
        return Path(hf_hub_download(repo_id, file, local_files_only=not reached))
    except GatedRepoError as error:
        raise UserError(
            f"{repo_id}: the hub gives this model only to those who have agreed to its terms. Set HF_TOKEN."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"{repo_id}: there is no such file or folder here, and no such model on the hub ({constants.ENDPOINT}). "
            "GPT-2's are gpt2, gpt2-medium, gpt2-large, gpt2-xl."
        ) from error
    except LocalEntryNotFoundError as error:
        why = (
            "HF_HUB_OFFLINE is set"
            if constants.HF_HUB_OFFLINE
            else f"{constants.ENDPOINT} cannot be reached or does not answer well"
        )
        raise UserError(
            f"{repo_id}: there is no such file or folder here, the model's {file} is not in the cache, and {why}. "
            "Fetch it once with a connection, or pass a folder that has it."
        ) from error
    except EntryNotFoundError as error:
        raise UserError(f"{repo_id}: this model has no {file} on the hub, and only that can be read.") from error
    except UserError:
        raise
    except Exception as error:  # of the network, the HTTP library or the disk
        raise UserError(
            f"{repo_id}: {file} could not be downloaded ({type(error).__name__}: {_short(error)}). "
            "Try again: it goes on where it was."
        ) from error


def _fill_cache(repo_id: str, file: str) -> bool:
    """Download a large file into the library's cache, where the library will find it under its checksum.

    Returns:
        Whether the hub answers.
    """
    try:
        headers = build_hf_headers(headers={"Accept-Encoding": "identity"})
        promised = get_hf_file_metadata(hf_hub_url(repo_id, file), headers=headers)
    except HfHubHTTPError:  # no such model, or the like, which the library tells apart
        return True
    except Exception:  # of the HTTP library: no network
        return False
    if promised.etag is None or not SHA256.fullmatch(promised.etag):
        return True  # a small file, which the hub names no SHA-256 for
    blob = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo_id, repo_type="model"), "blobs", promised.etag)
    part = blob.with_name(f"{blob.name}.part")
    blob.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(part.with_suffix(".lock")):
        if blob.exists():
            return True
        _download(hf_hub_url(repo_id, file), part, size=promised.size, headers=headers, label=f"{repo_id}/{file}")
        with open(part, "rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != promised.etag:
            part.unlink()
            raise UserError(
                f"{repo_id}: {file} arrived damaged: its SHA-256 is {found}, the hub promised {promised.etag}. "
                "It was discarded; try again."
            )
        os.replace(part, blob)
    return True


def _download(url: str, part: Path, *, size: int | None, headers: dict[str, str], label: str) -> None:
    """Append to a file what is still missing of what a URL holds, trying again where the connection breaks.

    The library's own function keeps nothing of a broken piece of 10 MB, nor of a broken process.
    """
    tries = TRIES
    with open(part, "ab") as stream, tqdm(total=size, desc=label, unit="B", unit_scale=True) as bar:
        while size is None or stream.tell() < size:
            start = stream.tell()
            bar.n = start
            wanted = {"Range": f"bytes={start}-"} if start else {}
            try:
                with get_session().stream("GET", url, headers=headers | wanted) as answer:
                    hf_raise_for_status(answer)
                    if answer.status_code != PARTIAL_CONTENT:  # the server starts anew
                        stream.truncate(0)
                        bar.reset(size)
                    for piece in answer.iter_bytes():
                        stream.write(piece)
                        bar.update(len(piece))
                if size is None or stream.tell() >= size:
                    return
            except (HfHubHTTPError, OSError):
                raise
            except Exception:  # of the HTTP library: the connection
                stream.flush()
                tries = TRIES if stream.tell() > start else tries - 1
                if tries == 0:
                    raise
                time.sleep(PAUSE_SECONDS)


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no reason given"]
    return lines[0][:200]

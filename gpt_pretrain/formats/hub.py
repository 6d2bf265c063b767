"""Fetching a model's files from the Hugging Face hub: resumed after a break, and checked against the hub's checksum.

The library keeps the files in its cache and honours HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE. Two things are added: an
interrupted download of a large file goes on where it was in a later process too, and what was received is compared with the
SHA-256 that the hub names, before it takes its place in the cache.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils._fixes import WeakFileLock
from huggingface_hub.utils._headers import build_hf_headers

from gpt_pretrain.errors import UserError

SHA256 = re.compile(r"[0-9a-f]{64}")


def fetch(repo_id: str, file: str) -> Path:
    """A file of a model on the hub, from the cache if it is there and still the newest.

    Raises:
        UserError: when there is no such model or file, the hub cannot be reached, or what it sent is not what it promised.
    """
    try:
        _fill_cache(repo_id, file)
        return Path(hf_hub_download(repo_id, file))
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
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
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


def _fill_cache(repo_id: str, file: str) -> None:
    """Download a large file into the library's cache, where the library will find it under its checksum."""
    try:
        headers = build_hf_headers()
        promised = get_hf_file_metadata(hf_hub_url(repo_id, file), headers=headers)
    except Exception:  # no network, no such model ...: the library has the file already, or says what is wrong
        return
    if urlsplit(promised.location).netloc != urlsplit(constants.ENDPOINT).netloc:
        headers.pop("authorization", None)  # the hub's storage is another's server
    if promised.etag is None or not SHA256.fullmatch(promised.etag):
        return  # a small file, which the hub names no SHA-256 for
    blob = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo_id, repo_type="model"), "blobs", promised.etag)
    part = blob.with_name(f"{blob.name}.part")
    blob.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(part.with_suffix(".lock")):
        if blob.exists():
            return
        with open(part, "ab") as stream:
            if promised.size is not None and stream.tell() > promised.size:
                stream.truncate(0)
            http_get(
                promised.location,
                stream,
                resume_size=stream.tell(),
                headers=headers,
                expected_size=promised.size,
                displayed_filename=f"{repo_id}/{file}",
            )
        with open(part, "rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != promised.etag:
            part.unlink()
            raise UserError(
                f"{repo_id}: {file} arrived damaged: its SHA-256 is {found}, the hub promised {promised.etag}. "
                "It was discarded; try again."
            )
        os.replace(part, blob)


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no reason given"]
    return lines[0][:200]

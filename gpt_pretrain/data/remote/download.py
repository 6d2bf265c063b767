"""Download a text over http or https, and find it again in the cache."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pooch
from urllib3.exceptions import HTTPError

from gpt_pretrain.data.private_cache import create_private, open_cache, open_own
from gpt_pretrain.data.remote.web import download_file, why_unreachable
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.files import replacing
from gpt_pretrain.system.signing import SIGNATURE_BYTES, has_signature, signature
from gpt_pretrain.system.urls import SECRET, check_url, hide_secrets, secret_parts, without_secrets

MAX_NAME_CHARACTERS = 100
SIGNATURE_SUFFIX, PURPOSE = ".signature", "download"  # of the file that shows that this user made a download
# Query parameters that cloud storage adds to a signed URL, by the name of its signature. They change each time a URL is signed.
# In a URL without a signature, a parameter with such a short name may select the file.
URL_SIGNATURES = {
    "x-amz-signature": re.compile(r"x-amz-[\w-]+"),
    "x-goog-signature": re.compile(r"x-goog-[\w-]+"),
    "signature": re.compile(r"awsaccesskeyid|googleaccessid|key-pair-id|signature|expires|policy"),
    "sig": re.compile(r"sig|s[evprtk]|sr|spr|sk\w+"),
}


def download(url: str, *, sha256: str | None, cache_dir: Path) -> Path:
    """Download a file over http or https unless the cache already has it with this checksum, and return its path.

    Raises:
        UserError: If the server cannot be reached, refuses, or sends content with another checksum. No file is left behind.
    """
    if (earlier := find_download(url, cache_dir=cache_dir, sha256=sha256)) is not None:
        return earlier
    check_url(url, setting="data.url", schemes=("https", "http"))
    folder, shown = open_cache(cache_dir, "downloads"), without_secrets(url)
    pooch.get_logger().setLevel(logging.WARNING)
    try:
        name = download_name(url)
        (folder / name).unlink(missing_ok=True)  # pooch would return an existing file, even a link or a wrong one
        path = Path(pooch.retrieve(url, known_hash=sha256, fname=name, path=folder, downloader=download_file))
        with suppress(OSError):  # Without a signature, the next start downloads the file again.
            _sign(path)
        return path
    except UserError:
        raise
    except (OSError, HTTPError) as error:  # The exceptions of requests are OSErrors.
        if (answer := getattr(error, "response", None)) is not None:
            raise UserError(
                f"{shown} could not be downloaded: the server answers {answer.status_code} {_truncate(str(answer.reason))}. "
                "Check data.url=, or give a text of your own with data.path=FILE."
            ) from None
        reason = why_unreachable(error) or _truncate(hide_secrets(str(error), known=secret_parts(url))).rstrip(".")
        is_url_wrong = isinstance(error, ValueError)
        remedy = "Check data.url=" if is_url_wrong else "Without a network, give a text of your own with data.path=FILE"
        raise UserError(f"{shown} could not be downloaded ({reason}). {remedy}, or use data=sample.") from None
    except ValueError:  # pooch's error for a wrong checksum
        raise UserError(
            f"{shown} sent unexpected content: its SHA-256 is not {sha256}. The download was discarded. Try again, or get the "
            "text by other means and give it with data.path=FILE."
        ) from None


def find_download(url: str, *, cache_dir: Path, sha256: str | None = None) -> Path | None:
    """Return the file that a URL was downloaded to, or None if there is none with this checksum.

    Args:
        sha256: The checksum in hexadecimal. None accepts a file whose signature shows that this user downloaded it.
    """
    # An earlier version named the file after the end of the URL alone, which other URLs may have too.
    try:
        found = [cache_dir / "downloads" / download_name(url)]
    except ValueError:  # for what is no URL
        return None
    if sha256 is not None:
        found.append(cache_dir / "texts" / url.rstrip("/").rsplit("/", 1)[-1])
    for path in found:
        try:
            found_sha256 = _sha256(path)
            if found_sha256 == sha256 or (sha256 is None and _is_signed(path, found_sha256)):
                return path
        except OSError:
            continue
    return None


def download_name(url: str) -> str:
    """Return the name of the file that a URL is downloaded to: a hash of the URL and the last part of its path.

    Neither contains user, password or signatures. So a file has the same name if its URL is signed again.
    """
    split = urlsplit(url)
    query = parse_qsl(split.query, keep_blank_values=True)
    names = {name.lower() for name, _ in query}
    for name_of_signature, parts in URL_SIGNATURES.items():
        if name_of_signature in names and sum(parts.fullmatch(name) is not None for name in names) > 1:
            query = [(name, value) for name, value in query if not parts.fullmatch(name.lower())]
    content = [split.scheme, without_secrets(f"{split.scheme}://{split.netloc}").replace(f"{SECRET}@", ""), split.path, query]
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    last = re.sub(r"[^A-Za-z0-9._-]", "_", split.path.rstrip("/").rpartition("/")[2])[-MAX_NAME_CHARACTERS:]
    return f"{key}-{last or 'text'}"


def _sign(path: Path) -> None:
    """Sign a download, so that later starts know that this user made it.

    Raises:
        OSError: If the signature cannot be written.
    """
    signed = signature(_signed_content(path, _sha256(path)), purpose=PURPOSE)
    with replacing(_signature_file(path), durable=False) as scratch, create_private(scratch) as stream:
        stream.write(signed)


def _is_signed(path: Path, sha256: str) -> bool:
    with open_own(_signature_file(path)) as stream:
        return has_signature(_signed_content(path, sha256), stream.read(SIGNATURE_BYTES + 1), purpose=PURPOSE)


def _signature_file(path: Path) -> Path:
    return path.with_name(f"{path.name}{SIGNATURE_SUFFIX}")


def _signed_content(path: Path, sha256: str) -> bytes:
    """Return the bytes that are signed for a download: the checksum of its content, and its name, which stands for the URL."""
    return f"{path.name} {sha256}".encode()


def _sha256(path: Path) -> str:
    with open_own(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _truncate(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "..."

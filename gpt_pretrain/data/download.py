"""Fetching a text once, with a checksum."""

from __future__ import annotations

import logging
from pathlib import Path

import pooch

from gpt_pretrain.errors import UserError

TIMEOUT_SECONDS = 30


def download(url: str, *, sha256: str | None, folder: Path) -> Path:
    """The file behind url, from folder if it is there with that checksum, else from the network.

    Raises:
        UserError: when the server cannot be reached, refuses, or sends something else than the checksum promises;
            nothing is left behind.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror}. Choose another folder with data.cache_dir=FOLDER."
        ) from error
    pooch.get_logger().setLevel(logging.WARNING)
    downloader = pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT_SECONDS)
    try:
        return Path(
            pooch.retrieve(url, known_hash=sha256, fname=downloaded(url, folder=folder).name, path=folder, downloader=downloader)
        )
    except ValueError as error:  # pooch's word for a checksum that differs
        raise UserError(
            f"{url} did not send what was expected: the SHA-256 differs from {sha256}. The download was discarded; try again, "
            "or get the text by other means and pass it with data.path=FILE."
        ) from error
    except OSError as error:  # requests' exceptions are OSErrors
        raise UserError(
            f"{url} could not be downloaded ({type(error).__name__}: {_short(error)}). "
            "Without a network, pass a text of your own with data.path=FILE, or use data=sample."
        ) from error


def downloaded(url: str, *, folder: Path) -> Path:
    """Where the file behind url is, or would be."""
    return folder / url.rstrip("/").rsplit("/", 1)[-1]


def _short(error: OSError) -> str:
    text = str(error)
    return text if len(text) <= 120 else text[:117] + "..."

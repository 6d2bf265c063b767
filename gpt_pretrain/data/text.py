"""Raw text: the sample story of the package, a download, or the user's files."""

from __future__ import annotations

import codecs
import glob
import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import pooch

from gpt_pretrain.config.schema import DataSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.tokenizers.base import END_OF_TEXT

PIECE_CHARS = 1 << 20
DOWNLOAD_TIMEOUT = 30  # seconds


@dataclass(frozen=True)
class Text:
    """UTF-8 text files read as one text with `<|endoftext|>` between them, piece by piece."""

    files: tuple[Path, ...]

    def pieces(self) -> Iterator[str]:
        """Yield the text in order, in pieces of at most PIECE_CHARS characters.

        Raises:
            UserError: If a file cannot be read or is not UTF-8.
        """
        for number, file in enumerate(self.files):
            if number > 0:
                yield END_OF_TEXT
            try:
                with open(file, encoding="utf-8-sig") as stream:  # skips a byte order mark
                    while piece := stream.read(PIECE_CHARS):
                        yield piece
            except UnicodeDecodeError as error:
                encoding = "UTF-16" if _begins_like_utf16(file) else "LATIN1"
                raise UserError(
                    f"{file} is not UTF-8 text ({error.reason} near byte {_find_invalid_byte(file)}). "
                    f"Convert it to UTF-8, for example with: iconv -f {encoding} -t UTF-8 '{file}' > new.txt"
                ) from error
            except OSError as error:
                raise UserError(f"{file} cannot be read: {error.strerror or error}.") from error

    def sha256(self) -> str:
        """Return a hash of the files' sizes and bytes."""
        digest = hashlib.sha256()
        for file in self.files:
            try:
                digest.update(file.stat().st_size.to_bytes(8, "little"))
                with open(file, "rb") as stream:
                    while block := stream.read(1 << 20):
                        digest.update(block)
            except OSError as error:
                raise UserError(f"{file} cannot be read: {error.strerror or error}.") from error
        return digest.hexdigest()


def cache_folder(settings: DataSettings) -> Path:
    """Return the folder for downloads and token files: data.cache_dir or, if that is null, the user's cache folder."""
    return Path(pooch.os_cache("gpt-pretrain")) if settings.cache_dir is None else Path(settings.cache_dir).expanduser()


def find_text(settings: DataSettings, *, cache_dir: Path) -> Text:
    """Return the text that the `data` settings name: path (a file, directory or glob), else url, else the sample story.

    Args:
        cache_dir: Folder for downloads.

    Raises:
        UserError: If there is no such file, or the download fails.
    """
    if settings.path is not None:
        return Text(_find_files(settings.path))
    if settings.url is not None:
        return Text((download(settings.url, sha256=settings.sha256, folder=cache_dir / "texts"),))
    if settings.name != "sample":
        raise UserError(f"data={settings.name} needs data.path=FILE, DIRECTORY or GLOB of UTF-8 text.")
    return Text((Path(str(resources.files("gpt_pretrain") / "data" / "sample.txt")),))


def download(url: str, *, sha256: str | None, folder: Path) -> Path:
    """Download a file unless the folder already has it with this checksum, and return its path.

    Raises:
        UserError: If the server cannot be reached, refuses, or sends content with another checksum. No file is left behind.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror}. Choose another folder with data.cache_dir=FOLDER."
        ) from error
    pooch.get_logger().setLevel(logging.WARNING)
    downloader = pooch.HTTPDownloader(progressbar=True, timeout=DOWNLOAD_TIMEOUT)
    name = download_path(url, folder=folder).name
    try:
        return Path(pooch.retrieve(url, known_hash=sha256, fname=name, path=folder, downloader=downloader))
    except ValueError as error:  # pooch's error for a wrong checksum
        raise UserError(
            f"{url} sent unexpected content: its SHA-256 is not {sha256}. The download was discarded. Try again, or get the text "
            "by other means and give it with data.path=FILE."
        ) from error
    except OSError as error:  # includes the exceptions of requests
        raise UserError(
            f"{url} could not be downloaded ({type(error).__name__}: {_truncate(str(error))}). "
            "Without a network, give a text of your own with data.path=FILE, or use data=sample."
        ) from error


def download_path(url: str, *, folder: Path) -> Path:
    """Return the path that a URL is downloaded to."""
    return folder / url.rstrip("/").rsplit("/", 1)[-1]


def _truncate(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "..."


def _find_files(pattern: str) -> tuple[Path, ...]:
    path = Path(pattern).expanduser()
    if path.is_file():
        return (path,)
    if path.is_dir():
        found = [file for file in path.rglob("*") if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    else:
        found = [Path(match) for match in glob.glob(str(path), recursive=True)]
    files = tuple(sorted(file for file in found if file.is_file()))
    if not files:
        problem = (
            "the folder has no files" if path.is_dir() else "there is no such file or folder, and as a glob it matches no file"
        )
        raise UserError(f"data.path={pattern}: {problem}. Give a UTF-8 text file, a folder of them, or a quoted glob.")
    return files


def _begins_like_utf16(file: Path) -> bool:
    with open(file, "rb") as stream:
        return stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def _find_invalid_byte(file: Path) -> int:
    """Return the position of the first byte that is not UTF-8, counted from 0."""
    position = 0
    with open(file, "rb") as stream:
        for line in stream:
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return position + error.start
            position += len(line)
    return position

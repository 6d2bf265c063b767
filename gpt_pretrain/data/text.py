"""Where the raw text comes from: the package, a download, or the user's files."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import pooch

from gpt_pretrain.config.schema import DataSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.tokenizers.base import END_OF_TEXT

PIECE_CHARS = 1 << 20


@dataclass(frozen=True)
class Text:
    """Files of UTF-8 text, read as one text with `<|endoftext|>` between them; never held in memory as a whole."""

    files: tuple[Path, ...]

    def pieces(self) -> Iterator[str]:
        """The text in order, in pieces of at most PIECE_CHARS characters.

        Raises:
            UserError: when a file cannot be read or is not UTF-8.
        """
        for number, file in enumerate(self.files):
            if number:
                yield END_OF_TEXT
            try:
                with open(file, encoding="utf-8-sig") as stream:  # a byte order mark is no text
                    while piece := stream.read(PIECE_CHARS):
                        yield piece
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{file} is not UTF-8 text ({error.reason} near byte {_bad_byte(file)}). "
                    f"Save it as UTF-8, for example with: iconv -f LATIN1 -t UTF-8 '{file}' > new.txt"
                ) from error
            except OSError as error:
                raise UserError(f"{file} cannot be read: {error.strerror or error}.") from error

    def sha256(self) -> str:
        """A hash of the files' bytes and where each begins."""
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
    """Where downloads and token files are kept: the user's cache folder, unless the settings say otherwise."""
    return Path(pooch.os_cache("gpt-pretrain")) if settings.cache_dir is None else Path(settings.cache_dir).expanduser()


def find_text(settings: DataSettings, *, cache_dir: Path) -> Text:
    """The text that the `data` settings name: path if it is given (a file, a directory or a glob), else url, else the story.

    Args:
        cache_dir: where a download is kept.

    Raises:
        UserError: when there is no such file, or the download fails.
    """
    if settings.path is not None:
        return Text(_matching(settings.path))
    if settings.url is not None:
        from gpt_pretrain.data.download import download

        return Text((download(settings.url, sha256=settings.sha256, folder=cache_dir / "texts"),))
    if settings.name != "sample":
        raise UserError(f"data={settings.name} needs data.path=FILE, DIRECTORY or GLOB of UTF-8 text.")
    return Text((Path(str(resources.files("gpt_pretrain") / "data" / "sample.txt")),))


def _matching(path: str) -> tuple[Path, ...]:
    place = Path(path).expanduser()
    if place.is_file():
        return (place,)
    if place.is_dir():
        found = [file for file in place.rglob("*") if not any(part.startswith(".") for part in file.relative_to(place).parts)]
    else:
        found = [Path(match) for match in glob.glob(str(place), recursive=True)]
    files = tuple(sorted(file for file in found if file.is_file()))
    if not files:
        what = (
            "the directory holds no file"
            if place.is_dir()
            else "there is no such file or directory, and as a glob it matches no file"
        )
        raise UserError(f"data.path={path}: {what}. Give a UTF-8 text file, a directory of them, or a quoted glob.")
    return files


def _bad_byte(file: Path) -> int:
    """Where the first byte stands that is not UTF-8, from 0."""
    position = 0
    with open(file, "rb") as stream:
        for line in stream:
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return position + error.start
            position += len(line)
    return position

"""Text files read as one text, piece by piece."""

from __future__ import annotations

import codecs
import glob
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.tokenizers.base import END_OF_TEXT

PIECE_CHARS = 1 << 20


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


def find_text_files(pattern: str) -> tuple[Path, ...]:
    """Return the files that data.path names, sorted; files and folders whose names begin with a dot are left out.

    Raises:
        UserError: If there are none.
    """
    path = user_path(pattern)
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
        # A resumed run takes the path over as it was typed, perhaps in another folder.
        hint = (
            ""
            if path.is_absolute()
            else f" Relative paths, also those of a resumed run, start at the current folder, {Path.cwd()}."
        )
        raise UserError(
            f"data.path={pattern}: {problem}.{hint} Type data.path= with a UTF-8 text file, a folder of them, or a quoted glob."
        )
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

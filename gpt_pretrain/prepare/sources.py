"""Which files a corpus is read from, in which order, and whether they are still the same."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gpt_pretrain.errors import UserError

# What a name ends in, once an archive's own ending is taken off, tells what is in the file.
FORMS = {".txt": "text", ".md": "text", ".jsonl": "lines", ".ndjson": "lines", ".json": "lines", ".parquet": "parquet"}
ARCHIVES = (".gz", ".zst")
KNOWN = ".txt, .md, .jsonl, .ndjson, .json (each also with .gz or .zst) and .parquet"


@dataclass(frozen=True)
class InputFile:
    """One file of a corpus.

    Args:
        path: as the user named it, or as it was found below what the user named.
        form: text, lines or parquet.
        size: in bytes.
        changed: when it was last written, in nanoseconds.
    """

    path: str
    form: str
    size: int
    changed: int

    @property
    def archive(self) -> str | None:
        """gz, zst, or None for a plain file."""
        ending = Path(self.path).suffix.lower()
        return ending[1:] if ending in ARCHIVES else None


def find_sources(words: Iterable[str], *, out: Path) -> list[InputFile]:
    """The files that a command line names, in that order; those of a directory or a glob sorted by name; none twice.

    Args:
        words: files, directories and globs. Of a directory only names with a known ending count; a file that is named itself is
            text unless its ending says otherwise.
        out: a folder whose files are never taken, and must not be named.

    Raises:
        UserError: with every word that leads to no file, and every file that cannot be read.
    """
    problems: list[str] = []
    found: dict[str, InputFile] = {}
    for word in words:
        files = _matching(word, problems)
        for path in files:
            real = os.path.realpath(path)
            if real in found:
                continue
            if Path(real).is_relative_to(out.resolve()):
                if Path(word).expanduser().is_file():
                    problems.append(f"{word} is in out={out}, which is for the corpus alone. Choose another folder for that.")
                continue
            try:
                with open(path, "rb"):
                    found[real] = source(path)
            except OSError as error:
                problems.append(f"{path} cannot be read: {error.strerror or error}.")
    if problems:
        raise UserError(problems)
    return list(found.values())


def source(path: str) -> InputFile:
    """A file as it is now.

    Raises:
        OSError: when it is not there.
    """
    status = os.stat(path)
    return InputFile(path, _form(Path(path)) or "text", status.st_size, status.st_mtime_ns)


def check_unchanged(sources: Iterable[InputFile]) -> None:
    """Make sure that files are what they were when the work was planned.

    Raises:
        UserError: with those that are not.
    """
    problems = []
    for before in sources:
        try:
            now: InputFile | None = source(before.path)
        except OSError:
            now = None
        if now != before:
            what = "is gone" if now is None else "has changed"
            problems.append(
                f"{before.path} {what} since this corpus was begun. Put it back as it was, or begin again with overwrite=true."
            )
    if problems:
        raise UserError(problems[:10])


def _matching(word: str, problems: list[str]) -> list[str]:
    """The files that a word names; what is wrong with it is added to problems."""
    if "://" in word:
        problems.append(
            f"{word}: files are read from this machine only; copy it here. A dataset of the hub is named with dataset=."
        )
        return []
    place = Path(word).expanduser()
    if place.is_dir():
        files = sorted(str(file) for file in place.rglob("*") if _is_visible(file, place) and file.is_file() and _form(file))
        if not files:
            problems.append(f"{word}: the directory holds no file whose name ends in {KNOWN}.")
        return files
    if place.exists():
        return [str(place)]
    files = sorted(match for match in glob.glob(str(place), recursive=True) if Path(match).is_file())
    if not files:
        problems.append(
            f"{word}: there is no such file or directory, as a glob it matches no file, and it is no setting; "
            "--help lists the settings. A dataset of the Hugging Face hub is named with dataset=NAME."
        )
    return files


def _is_visible(file: Path, below: Path) -> bool:
    return not any(part.startswith(".") for part in file.relative_to(below).parts)


def _form(path: Path) -> str | None:
    """What a file holds by its name, or None where that does not tell."""
    if path.suffix.lower() in ARCHIVES:
        form = FORMS.get(path.with_suffix("").suffix.lower())
        return None if form == "parquet" else form
    return FORMS.get(path.suffix.lower())

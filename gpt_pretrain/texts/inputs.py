"""Find the files or the dataset that a corpus is made from, and detect whether they have changed."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpt_pretrain.config.command_schema import InputSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.reading import open_regular
from gpt_pretrain.system.recognition.file_kinds import HEAD, REFUSED, FileKind
from gpt_pretrain.system.urls import is_url, without_secrets
from gpt_pretrain.texts.extras import missing_extra
from gpt_pretrain.texts.finding import explain_empty_folder, match_files
from gpt_pretrain.texts.left_out import LeftOut
from gpt_pretrain.texts.missing_files import explain_missing_file
from gpt_pretrain.texts.recognition import recognize_file, recognize_without_text

# Names of backups: of Emacs and Vim, of nano, of sed and of patch.
BACKUP_NAME = re.compile(r"(.+?)(?:\.~\d+~|~|\.save|\.bak|\.orig)|#(.+)#", re.DOTALL)
BACKUP = "is an editor's backup of a file that is read as well, so the model sees this text twice. Move it out of the folder"
DESCRIPTION = FileKind("description of a repository of data")
DESCRIPTION_NAME = re.compile(r"(?:readme|licen[sc]e|citation)(?:\.(?:md|txt|rst|cff|bib))?", re.IGNORECASE)
# Git LFS may also keep the pictures of a repository of code or of documents, whose README is read.
DATA_IN_LFS = re.compile(rb"\.(?:arrow|parquet|jsonl|csv|tsv|zst)[ \t][^\n]*filter=lfs")
ESCAPES = {"\\n": "\n", "\\t": "\t", "\\r": "\r"}  # in the setting document_separator


@dataclass(frozen=True)
class InputFile:
    """One file of a corpus.

    Args:
        path: As the user typed it, or as it was found below a directory that the user named.
        kind: The kind of the file. For a compressed file whose content is not read, the kind of the content.
        size: In bytes.
        changed: Time of the last modification, in nanoseconds.
    """

    path: str
    kind: FileKind
    size: int
    changed: int


@dataclass(frozen=True)
class FileStamp:
    """The size and the modification time of a file, which show whether it has changed. Both are None if there is no file.

    Args:
        size: In bytes.
        changed: Time of the last modification, in nanoseconds.
    """

    path: str
    size: int | None = None
    changed: int | None = None


@dataclass(frozen=True)
class StreamedDataset:
    """A dataset that the package datasets reads as a stream."""

    name: str
    config: str | None
    split: str


@dataclass(frozen=True)
class CorpusInputs:
    """Everything that a corpus is made from, and how it is read.

    Args:
        files: The files in order; empty for a dataset.
        dataset: The dataset that is read instead of files.
        text_field: The field of a JSON record, or the column of a table, that contains the text.
        separator: The string between the documents of a text file; None if each file is one document.
        as_text: Whether tables, JSON and HTML are read as plain text.
        source: Description of the inputs for the manifest.
        stamps: The description with modification times, to detect changes while the corpus is being prepared.
    """

    files: list[InputFile]
    dataset: StreamedDataset | None
    text_field: str
    separator: str | None
    source: list[dict[str, Any]]
    stamps: list[dict[str, Any]]
    as_text: bool = False

    @property
    def size(self) -> int | None:
        """Total size of the files in bytes; None for a dataset, whose size is unknown."""
        return sum(file.size for file in self.files) if self.dataset is None else None


def find_inputs(settings: InputSettings, *, out: Path) -> CorpusInputs:
    """Find the inputs that the settings name.

    Raises:
        UserError: If some of them do not exist or cannot be read.
    """
    separator = unescape_separator(settings.document_separator)
    if settings.dataset is not None:
        dataset = StreamedDataset(settings.dataset, settings.dataset_config, settings.dataset_split)
        source, stamp = _describe_dataset(dataset)
        return CorpusInputs([], dataset, settings.text_field, separator, [source], [stamp])
    files = find_input_files(settings.inputs, out=out, text_field=settings.text_field, as_text=settings.as_text)
    sources = [{"path": file.path, "bytes": file.size} for file in files]
    stamps = [{"path": file.path, "bytes": file.size, "changed": file.changed} for file in files]
    return CorpusInputs(files, None, settings.text_field, separator, sources, stamps, settings.as_text)


def find_input_files(names: Iterable[str], *, out: Path, text_field: str = "text", as_text: bool = False) -> list[InputFile]:
    """Find the named files, in the given order. The files of a directory or a glob are sorted, and no file is listed twice.

    Args:
        names: Files, directories and globs. In a directory or a glob, files that are not text are left out. A file that is named
            itself must be readable.
        out: The corpus folder. Its files are skipped, and must not be named.
        text_field: The field of a record that contains the text.
        as_text: See `recognize`.

    Raises:
        UserError: If some names match no file that can be read. The message lists all of them.
    """
    problems: list[str] = []
    found: dict[str, InputFile] = {}
    for name in names:
        paths, is_named = _match(name, problems)
        chosen = {real: path for path in paths if (real := os.path.realpath(path)) not in found}
        inside = {real for real in chosen if Path(real).is_relative_to(out.resolve())}
        if inside and is_named:
            problems.append(f"{name} is inside out={out}, which is reserved for the corpus. Choose another folder for out=.")
        left = [path for real, path in chosen.items() if real not in inside]
        files, problems_here = select_files(name, left, is_named=is_named, text_field=text_field, as_text=as_text)
        found |= {os.path.realpath(file.path): file for file in files}
        problems += problems_here
    if problems:
        raise UserError(problems)
    return list(found.values())


def select_files(
    name: str, paths: Iterable[str], *, is_named: bool, text_field: str, as_text: bool
) -> tuple[list[InputFile], list[str]]:
    """Select the files that can be read, and log which ones of a folder are left out.

    Args:
        name: The path as it was typed, for messages.
        paths: The files that it names.
        is_named: Whether it names a single file, which must not be left out.

    Returns:
        The files, and a message for each one that cannot be read.
    """
    files, problems, left_out = list[InputFile](), list[str](), LeftOut()
    matched = set(paths := list(paths))
    for path in paths:
        try:
            file = stat_input_file(path, as_text=as_text)
        except OSError as error:
            problems.append(f"{path} cannot be read: {error.strerror or error}.")
            continue
        if is_named and file.kind.form == REFUSED:
            problems.append(file.kind.refusal(path))
        elif not is_named and describes_repository(path):
            left_out.add(DESCRIPTION, path)
        elif not is_named and not file.kind.is_read:
            left_out.add(file.kind, path)
        elif not is_named and (missing := recognize_without_text(path, file.kind, text_field, as_text=as_text)) is not None:
            left_out.add(missing, path)
        else:
            files.append(file)
            left_out.warnings.add(file.kind, path)
            if backed_up_file(path) in matched:
                left_out.warnings.add(replace(file.kind, warning=BACKUP), path)
    if files or problems or not paths:
        left_out.report(name)
    else:
        problems.append(f"{name}: there is no file that can be read{left_out.described()}{left_out.advice()}.")
    return files, problems


def describes_repository(path: str) -> bool:
    """Return whether a file describes a repository that keeps data in Git LFS, as those of the Hugging Face Hub do."""
    folder, name = os.path.split(path)
    if not DESCRIPTION_NAME.fullmatch(name):
        return False
    try:
        with open_regular(Path(folder) / ".gitattributes") as stream:
            return DATA_IN_LFS.search(stream.read(HEAD)) is not None
    except OSError:
        return False


def backed_up_file(path: str) -> str | None:
    """Return the file of which an editor has made this one as a backup, by its name; None for another name."""
    folder, name = os.path.split(path)
    found = BACKUP_NAME.fullmatch(name)
    return None if found is None else os.path.join(folder, found[1] or found[2])


def stat_input_file(path: str, *, as_text: bool = False) -> InputFile:
    """Return a file with its kind, its current size and its modification time.

    Raises:
        OSError: If it does not exist or cannot be read.
    """
    status = os.stat(path)
    return InputFile(path, recognize_file(path, as_text=as_text), status.st_size, status.st_mtime_ns)


def check_unchanged(files: Iterable[InputFile]) -> None:
    """Check that files have not changed since they were listed, at the start of the command.

    Raises:
        UserError: If some have changed.
    """
    problems = []
    for before in files:
        now = stamp_file(before.path)
        if now != FileStamp(before.path, before.size, before.changed):
            change = "has disappeared" if now.size is None else "has changed"
            problems.append(f"{before.path} {change} since this command started. Start again once the files no longer change.")
    if problems:
        raise UserError(problems[:10])


def stamp_file(path: str) -> FileStamp:
    """Return the stamp that a file has now."""
    try:
        status = os.stat(path)
    except OSError:
        return FileStamp(path)
    return FileStamp(path, status.st_size, status.st_mtime_ns)


def unescape_separator(separator: str | None) -> str | None:
    """Replace the escapes \\n, \\t and \\r in a separator by the characters that they stand for."""
    for escape, character in ESCAPES.items():
        separator = separator and separator.replace(escape, character)
    return separator


def _describe_dataset(dataset: StreamedDataset) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a dataset's entry for the manifest, and its stamp with the modification times of local files.

    Raises:
        UserError: If the package datasets is not installed.
    """
    if importlib.util.find_spec("datasets") is None:
        raise missing_extra("datasets")
    about = {"dataset": dataset.name, "config": dataset.config, "split": dataset.split}
    path = user_path(dataset.name)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path] if path.is_file() else []
    sizes = {str(file): file.stat().st_size for file in files}
    changed = {str(file): file.stat().st_mtime_ns for file in files}
    return about | {"bytes": sum(sizes.values()) if files else None}, about | {"files": sizes, "changed": changed}


def _match(name: str, problems: list[str]) -> tuple[list[str], bool]:
    """Return the files that a name matches, and whether it names a file; append a message to `problems` if there are none."""
    if not name.strip():  # An empty name would mean the current folder.
        problems.append(f"{name!r} names no input. Give a file, a directory or a glob.")
        return [], False
    if is_url(name) and name.startswith("file:"):
        problems.append(f"{name} is a URL. {explain_missing_file(name)}")
        return [], False
    if is_url(name):
        problems.append(
            f"{without_secrets(name)} is a URL, but only files on this machine are read. Download it first. "
            "For a dataset of the Hugging Face Hub use dataset=NAME."
        )
        return [], False
    files, is_named = match_files(name)
    if not files and user_path(name).is_dir():
        problems.append(f"{name}: {explain_empty_folder(user_path(name))}.")
    elif not files:
        usual = "--help lists the settings. For a dataset of the Hugging Face Hub use dataset=NAME."
        problems.append(f"{name}: no such file, directory, glob match or setting. {explain_missing_file(name) or usual}")
    return files, is_named

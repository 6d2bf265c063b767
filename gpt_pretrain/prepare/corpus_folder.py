"""The folder of a corpus: read and check its content, lock it, and clear it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt_pretrain.data.shards.corpus import MAX_COUNT
from gpt_pretrain.data.shards.manifest import FORMAT, MANIFEST, MAX_MANIFEST, VERSION
from gpt_pretrain.errors import UserError, describe_damage
from gpt_pretrain.runs.folder import is_written_by_runs
from gpt_pretrain.system.files import break_hard_links, remove_scratch_files
from gpt_pretrain.system.json_files import read_json
from gpt_pretrain.system.locks import lock
from gpt_pretrain.system.reading import MAX_NAMES, DamagedFileError
from gpt_pretrain.system.shown_values import short_repr
from gpt_pretrain.tokenizers.saving import TOKENIZER_FILES

WORK = ".work"  # The folder for files that are needed only until the corpus is complete.
PLAN, LOCK = "plan.json", "lock"
# The names of a corpus's files, and of the scratch files of killed processes. Version 0.1.0 named the latter .NAME.tmp.
SHARD_NAME = re.compile(r"\.?(train|val)-\d{5,}\.(bin|idx)(\.([0-9a-f]{8}\.)?tmp)?")
TOKENIZER_NAME = "|".join(map(re.escape, TOKENIZER_FILES))
CORPUS_NAME = re.compile(rf"manifest\.json|rejected\.jsonl|{TOKENIZER_NAME}|{SHARD_NAME.pattern}")
START_OVER = "Choose another folder with out=, or start over with overwrite=true"


def check_output_folder(folder: Path, *, out: str, content: str) -> None:
    """Check that neither the folder to be written nor a folder above it is a file, and that it does not hold a run.

    Args:
        out: The setting that names it.
        content: Its content, such as "the corpus".

    Raises:
        UserError: If it cannot be a folder.
    """
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            which = " is a file" if path == folder else f": {path} is a file"
            raise UserError(f"out={out}{which}. Choose a folder for {content}.")
    if folder.is_dir() and os.access(folder, os.R_OK) and is_written_by_runs(os.listdir(folder)):
        raise UserError(f"out={out} holds a run or a sweep. Choose another folder for {content}.")


def folder_not_writable(folder: Path, error: OSError) -> UserError:
    """Return the error for a folder that cannot be written."""
    return UserError(f"{folder} cannot be written: {error.strerror or error}. Choose another folder with out=.")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Read the manifest of a complete corpus; return None if there is none.

    Raises:
        UserError: If the manifest is damaged or was written by another program.
    """
    try:
        manifest = read_json(folder / MANIFEST, max_bytes=MAX_MANIFEST)
    except FileNotFoundError:
        return None
    except (OSError, DamagedFileError) as error:
        raise UserError(f"{folder / MANIFEST} cannot be read: {error}. {START_OVER}.") from error
    if (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION):
        raise UserError(f"{folder / MANIFEST} is not a manifest of gpt-pretrain. Choose another folder with out=.")
    return manifest


def read_plan(folder: Path) -> dict[str, Any] | None:
    """Read the plan of an interrupted preparation; return None if there is none.

    Raises:
        UserError: If the plan is damaged.
    """
    try:
        return read_json(folder / WORK / PLAN, max_bytes=MAX_MANIFEST)
    except FileNotFoundError:
        return None
    except (OSError, DamagedFileError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise UserError(f"{folder / WORK / PLAN} cannot be read: {reason}. {START_OVER}.") from error


def check_no_conflicts(folder: Path) -> None:
    """Check that a folder without a complete or interrupted corpus contains no files with the names of a corpus.

    Raises:
        UserError: If it contains any.
    """
    names = sorted(path.name for path in folder.iterdir() if CORPUS_NAME.fullmatch(path.name)) if folder.is_dir() else []
    if (folder / WORK).is_dir():  # A journal in it would be read as a part of the new corpus.
        names += sorted(f"{WORK}/{path.name}" for path in (folder / WORK).iterdir() if path.name != LOCK)
    if names:
        raise UserError(
            f"{folder} contains {', '.join(names[:3])}{' and more' * (len(names) > 3)}, which would be overwritten, and no "
            f"manifest or plan that describes them. {START_OVER}."
        )


def check_complete(folder: Path, manifest: dict[str, Any]) -> None:
    """Check that all files of a complete corpus exist, have the right sizes, and are not listed many times.

    Raises:
        UserError: If one of these is not the case.
    """
    n_names = Counter[tuple[int, int]]()
    for shard in _shards(manifest, folder):
        sizes = {shard["file"]: shard["tokens"] * manifest["itemsize"], shard["starts"]: shard["documents"] * 8}
        for name, size in sizes.items():
            path = folder / name
            if not path.is_file() or (status := path.stat()).st_size != size:
                raise UserError(f"{path} is missing or its size differs from the manifest. {START_OVER}.")
            n_names[status.st_dev, status.st_ino] += 1
            if n_names[status.st_dev, status.st_ino] > MAX_NAMES:  # A report would read a small file any number of times.
                raise UserError(f"{path} is listed more than {MAX_NAMES} times, under this or other names. {START_OVER}.")


def check_same(before: dict[str, Any], now: dict[str, Any], *, folder: Path, state: str) -> None:
    """Check that the corpus in a folder was made, or started, from the same inputs with the same settings.

    Args:
        before: Description of the corpus in the folder, in groups.
        now: Description of the requested corpus.
        state: complete or unfinished.

    Raises:
        UserError: If it was not. The message lists all differences.
    """
    differences = []
    for group, values in now.items():
        old = before.get(group)
        if group == "tokenizer" and isinstance(values, dict) and isinstance(old, dict) and old != values:
            differences += _describe_tokenizers(old, values)
        elif isinstance(values, dict) and isinstance(old, dict):
            keys = [key for key in {**old, **values} if old.get(key) != values.get(key)]
            differences += [f"{key} was {_json(old.get(key))} and is now {_json(values.get(key))}" for key in keys]
        elif old != values:
            are_lists = isinstance(old or [], list) and isinstance(values, list)
            differences += _describe_changes(old or [], values) if are_lists else [f"{group} was {short_repr(old)}"]
    if differences:
        raise UserError(
            f"{folder} contains a corpus ({state}) that differs from the requested one: {'; '.join(differences[:10])}. "
            f"{START_OVER}."
        )


def _describe_tokenizers(old: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Describe a changed tokenizer by its name, or by its vocabulary if the name is the same. Hashes would say little."""
    names = [str(about.get("name")) for about in (old, now)]
    names = [name.rpartition("@")[0] or name for name in names]
    if names[0] != names[1]:
        return [f"tokenizer was {_json(names[0])} and is now {_json(names[1])}"]
    return [f"the vocabulary {names[1]} was another one then"]


def clear_corpus(folder: Path) -> None:
    """Delete a corpus that this process has locked, the manifest first. Other files in its folder are kept."""
    (folder / MANIFEST).unlink(missing_ok=True)
    for path in list(folder.iterdir()):
        if CORPUS_NAME.fullmatch(path.name):
            path.unlink()
    for path in (folder / WORK).iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK:  # This process holds the lock.
            path.unlink()


def remove_other_shards(folder: Path, names: set[str]) -> None:
    """Delete the shards of an earlier corpus and unfinished files.

    Args:
        names: The shards to keep, without suffix.
    """
    for path in folder.iterdir():
        if SHARD_NAME.fullmatch(path.name) and path.stem not in names:
            path.unlink()


def _shards(manifest: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Return the entries of all shards.

    Raises:
        UserError: If the manifest does not list them as this program does.
    """
    try:
        shards: list[dict[str, Any]] = [shard for part in manifest["parts"].values() for shard in part["shards"]]
        for part in manifest["parts"].values():
            _check_amounts(part)
        for shard in shards:
            if not all(SHARD_NAME.fullmatch(shard[name]) for name in ("file", "starts")):
                raise ValueError("a shard has an invalid name")
            if manifest["itemsize"] not in (2, 4):
                raise ValueError("a token has neither two nor four bytes")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / MANIFEST} is damaged: {describe_damage(error)}. {START_OVER}.") from error
    return shards


def _check_amounts(part: dict[str, Any]) -> None:
    """Check that a part of a corpus has as many documents and tokens as its shards.

    Raises:
        ValueError: If the numbers differ, or one of them is impossible.
        KeyError, TypeError: If a number is missing, or is not a number.
    """
    counts = {name: [shard[name] for shard in part["shards"]] for name in ("documents", "tokens")}
    numbers = [part["bytes"], *(part[name] for name in counts), *(count for found in counts.values() for count in found)]
    if not all(type(number) is int and 0 <= number < MAX_COUNT for number in numbers):
        raise ValueError("a count is not a whole number")
    if any(part[name] != sum(found) for name, found in counts.items()):
        raise ValueError("the counts of a part are not those of its shards")


@contextmanager
def lock_corpus(folder: Path) -> Iterator[None]:
    """Keep other processes from writing the same corpus, and delete half-written files of killed processes.

    Raises:
        UserError: If another process is writing it, or if there are links in its working folder.
    """
    work = folder / WORK
    _check_no_links(work)
    work.mkdir(parents=True, exist_ok=True)
    with lock(work / LOCK, problem=f"{folder}: another process is writing this corpus. Wait for it, or choose another out=."):
        remove_scratch_files(work)
        if (work / PLAN).exists():  # Without a plan the folder contains no files of this program.
            remove_scratch_files(folder)
        yield


def _check_no_links(work: Path) -> None:
    """Check that neither the working folder nor anything in it is a link, since files in it are appended to.

    Files with several names (hard links) are replaced by copies. Outside the working folder, writing a file replaces a link.

    Raises:
        UserError: If there are links. The message names the first ones.
    """
    paths = [] if work.is_symlink() else _paths_below(work)
    if links := [path for path in [work, *paths] if path.is_symlink()]:
        raise UserError(
            f"{link} is a link to {os.readlink(link)}, and nothing is written through a link: a folder from somebody else may "
            f"hold links to any of your files. Delete {work} to start over."
            for link in links[:3]
        )
    break_hard_links(paths)


def _paths_below(folder: Path) -> list[Path]:
    """Return everything in a folder and in the folders below it, without following links."""
    entries = ((Path(parent), [*folders, *files]) for parent, folders, files in os.walk(folder, followlinks=False))
    return [parent / name for parent, names in entries for name in names]


def _describe_changes(before: list[Any], now: list[Any]) -> list[str]:
    """Describe the differences between two lists of sources."""
    old, new = ({json.dumps(_name(source)): source for source in sources} for sources in (before, now))
    removed, added = [name for name in old if name not in new], [name for name in new if name not in old]
    changed = [name for name in old if name in new and old[name] != new[name]]
    differences = [f"{name} has changed" for name in changed[:3]]
    differences += [f"{name} is no longer an input" for name in removed[:3]] + [f"{name} is new" for name in added[:3]]
    return differences or ["the inputs are in a different order"]


def _name(source: Any) -> Any:
    return source.get("path", source) if isinstance(source, dict) else source


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)

"""The folder that a corpus is written to: what is there already, and who may write."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt_pretrain.data.manifest import FORMAT, MANIFEST, VERSION
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.locks import lock

REJECTED = "rejected.jsonl"


WORK = ".work"  # the folder of what is needed until the corpus is complete


PLAN, LOCK = "plan.json", "lock"


OWN = re.compile(r"manifest\.json|rejected\.jsonl|\.?(train|val)-\d{5,}\.(bin|idx)(\.([0-9a-f]{8}\.)?tmp)?")


BEGIN_AGAIN = "Choose another folder with out=, or begin again with overwrite=true"


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished corpus, or None where there is none.

    Raises:
        UserError: when it is damaged, or another program's.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / MANIFEST} cannot be read: {error}. {BEGIN_AGAIN}.") from error
    if not isinstance(manifest, dict) or (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION):
        raise UserError(f"{folder / MANIFEST} is not a manifest of this program's. Choose another folder with out=.")
    return manifest


def read_plan(folder: Path) -> dict[str, Any] | None:
    """What was begun in a folder, or None."""
    try:
        plan: dict[str, Any] = json.loads((folder / WORK / PLAN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return plan


def check_own(folder: Path) -> None:
    """Make sure that a folder in which no corpus is complete or begun holds no files under the names that one would have.

    Raises:
        UserError: when it does.
    """
    taken = sorted(path.name for path in folder.iterdir() if OWN.fullmatch(path.name)) if folder.is_dir() else []
    if taken:
        raise UserError(
            f"{folder} holds {', '.join(taken[:3])}{' and more' * (len(taken) > 3)}, which would be lost, and nothing tells what "
            f"they are of. {BEGIN_AGAIN}."
        )


def check_complete(folder: Path, manifest: dict[str, Any]) -> None:
    """Make sure that all files of a finished corpus are there, in their sizes.

    Raises:
        UserError: when one is not.
    """
    for part in manifest["parts"].values():
        for shard in part["shards"]:
            sizes = {shard["file"]: shard["tokens"] * manifest["itemsize"], shard["starts"]: shard["documents"] * 8}
            for name, size in sizes.items():
                path = folder / name
                if not path.is_file() or path.stat().st_size != size:
                    raise UserError(f"{path} is missing or has another size than the manifest says. {BEGIN_AGAIN}.")


def check_same(before: dict[str, Any], now: dict[str, Any], *, folder: Path, state: str) -> None:
    """Make sure that what a folder holds, or has begun, is what is asked for now.

    Args:
        before, now: what the corpus depends on, in groups.
        state: complete or begun.

    Raises:
        UserError: with everything that differs.
    """
    differing = []
    for group, values in now.items():
        old = before.get(group)
        if isinstance(values, dict) and isinstance(old, dict):
            keys = [key for key in {**old, **values} if old.get(key) != values.get(key)]
            differing += [f"{key} was {_shown(old.get(key))} and is now {_shown(values.get(key))}" for key in keys]
        elif old != values:
            differing += _changed_sources(old, values)
    if differing:
        raise UserError(
            f"{folder}: a corpus is {state} here that differs from what is asked for: "
            + "; ".join(differing[:10])
            + f". {BEGIN_AGAIN}."
        )


def clear(folder: Path) -> None:
    """Remove a corpus that this process has locked, the manifest first, and nothing else that may be in its folder."""
    (folder / MANIFEST).unlink(missing_ok=True)
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if OWN.fullmatch(path.name):
            path.unlink()
    for path in (folder / WORK).iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK:  # which this process holds
            path.unlink()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing the same corpus.

    Raises:
        UserError: when one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / LOCK, problem=f"{folder.parent}: another process is writing this corpus at the moment."):
        yield


def _changed_sources(before: Any, now: Any) -> list[str]:
    """What differs between two lists of sources, in words."""
    old, new = ({json.dumps(_name(one)): one for one in sources or []} for sources in (before, now))
    gone, added = [name for name in old if name not in new], [name for name in new if name not in old]
    changed = [name for name in old if name in new and old[name] != new[name]]
    told = [f"{name} has changed" for name in changed[:3]]
    told += [f"{name} is no longer read" for name in gone[:3]] + [f"{name} is new" for name in added[:3]]
    return told or ["the files are read in another order"]


def _name(source: dict[str, Any]) -> Any:
    return source.get("path", source)


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)

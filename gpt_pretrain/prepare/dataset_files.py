"""Keep the package datasets to the files of the dataset that it is asked for.

The README.md of a dataset may list its files. datasets 5.2 opens whatever stands there: files of this machine, and URLs of any
file system of fsspec. What it reads would become part of the corpus.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt_pretrain.errors import UserError

REPOSITORY = re.compile(r"hf://datasets/[^/@]+(/[^/@]+)?(?=@)")


@contextmanager
def own_files_only(name: str) -> Iterator[None]:
    """Have datasets refuse, during the block, to look for files that are not the dataset's own.

    Args:
        name: The dataset's name on the hub, or its folder or file on this machine.
    """
    from datasets import data_files

    resolve: Callable[..., list[str]] = data_files.resolve_pattern

    def resolve_own(pattern: str, base_path: str, *arguments: Any, **options: Any) -> list[str]:
        if not _is_own(pattern, base_path, name):
            raise UserError(
                f"dataset={name}: its description names {pattern}, which is not a file of the dataset itself and could be any "
                "file of this machine. Nothing was read. If you trust it, download the files and give them as inputs."
            )
        return resolve(pattern, base_path, *arguments, **options)

    data_files.resolve_pattern = resolve_own
    try:
        yield
    finally:
        data_files.resolve_pattern = resolve


def _is_own(pattern: str, base_path: str, name: str) -> bool:
    """Return whether a pattern, which may be relative to a base path, matches only files of the dataset."""
    whole = pattern if "://" in pattern or os.path.isabs(pattern) else f"{base_path}/{pattern}"
    if "::" in whole or ".." in Path(whole).parts:
        return False
    local = Path(name).expanduser()
    if not local.exists():
        on_hub = REPOSITORY.match(base_path)  # its name on the hub may be longer than the typed one
        return on_hub is not None and whole.startswith((f"{on_hub[0]}@", f"{on_hub[0]}/"))
    folder = local if local.is_dir() else local.parent
    return "://" not in whole and Path(os.path.abspath(whole)).is_relative_to(os.path.abspath(folder))

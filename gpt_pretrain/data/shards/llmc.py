"""llm.c's format of token shards: *_train_*.bin and *_val_*.bin, each with a header of 1024 bytes.

The header tells what a shard is, so that shards with other names are read too.

Source: karpathy/llm.c, dev/data/data_common.py.
"""

from __future__ import annotations

import re

import numpy as np

from gpt_pretrain.data.files import Files, split_by_name
from gpt_pretrain.data.shards.corpus import CorpusPart, TokenCorpus
from gpt_pretrain.data.token_stream import Shard
from gpt_pretrain.errors import UserError

MAGIC, VERSION = 20240520, 1
LLAMA3_MAGIC = 20240801
HEADER = 1024  # bytes
ITEMSIZE = 2  # bytes per token
MAX_LOOKED_AT = 10  # shards whose headers tell the format


def is_llmc(files: Files) -> bool:
    """Return whether a folder holds a training shard with llm.c's header."""
    return any(_read_count(files, name) is not None for name in _shard_names(files)[0][:MAX_LOOKED_AT])


def find_llama3_shard(files: Files) -> str | None:
    """Return the name of a shard that llm.c has made for Llama 3, or None."""
    magic = LLAMA3_MAGIC.to_bytes(4, "little")
    return next((name for name in files.names() if name.endswith(".bin") and files.read(name, 0, 4) == magic), None)


def open_llmc(files: Files) -> TokenCorpus:
    """Describe a folder in llm.c's format.

    Raises:
        UserError: If there are no training shards or some have another header.
    """
    shard_names = _shard_names(files)
    if not shard_names[0]:
        raise UserError(f"data.path={files.location}: there are no files *_train_*.bin, which llm.c's format requires.")
    counts = {name: _read_count(files, name) for names in shard_names for name in names}
    if invalid := [name for name, count in counts.items() if count is None]:
        raise UserError(
            f"data.path={files.location}: {', '.join(invalid[:3])} {'does' if len(invalid) == 1 else 'do'} not begin with "
            f"llm.c's header (magic number {MAGIC}, version {VERSION}). Move files that are not shards out of the folder."
        )
    train, val = (
        CorpusPart(tuple(Shard(files, name, counts[name] or 0, ITEMSIZE, header=HEADER) for name in names))
        for names in shard_names
    )
    return TokenCorpus(files, "llmc", train, val if val.shards else None, eos_first=True)


def _shard_names(files: Files) -> tuple[list[str], list[str]]:
    """Return the files for training and for validation: those with llm.c's names or, if there are none, all .bin files."""
    names = [name for name in files.names() if name.endswith(".bin")]
    train, val = ([name for name in names if re.search(rf"_{part}(_.*)?\.bin$", name)] for part in ("train", "val"))
    return (train, val) if train else split_by_name(names)


def _read_count(files: Files, name: str) -> int | None:
    """Return the number of tokens that the header of a shard states, or None if it has another header."""
    header = np.frombuffer(files.read(name, 0, 12).ljust(12, b"\0"), "<i4")
    return int(header[2]) if (header[0], header[1]) == (MAGIC, VERSION) else None

"""Token shards as NumPy arrays: *train*.npy and *val*.npy, each an array of whole numbers in one dimension.

Source: karpathy/build-nanogpt, fineweb.py, which begins each document with the end-of-text token.
"""

from __future__ import annotations

import io
import logging
import math

import numpy as np

from gpt_pretrain.data.files import Files, split_by_name
from gpt_pretrain.data.shards.bare_tokens import explain_bare_tokens
from gpt_pretrain.data.shards.corpus import CorpusPart, TokenCorpus
from gpt_pretrain.data.token_stream import Shard
from gpt_pretrain.errors import UserError, first_line
from gpt_pretrain.system.terminal import escape_line

SUFFIX, MAGIC = ".npy", b"\x93NUMPY"
LONGEST_HEADER = 12_000  # bytes
SHOWN_NAMES = 3

log = logging.getLogger(__name__)


def is_numpy(files: Files) -> bool:
    """Return whether a folder contains NumPy arrays."""
    return any(name.endswith(SUFFIX) for name in files.names())


def open_numpy(files: Files) -> TokenCorpus:
    """Describe a folder of NumPy arrays.

    Raises:
        UserError: If there are none for training, or one is not an array of token ids.
    """
    names = [name for name in files.names() if name.endswith(SUFFIX)]
    train, val = split_by_name(names)
    if not train:
        raise UserError(f"data.path={files.location}: there are no files *train*.npy, which token ids in NumPy arrays require.")
    shards = {name: _read_shard(files, name) for name in names}
    if val:
        more = ", ..." if len(val) > SHOWN_NAMES else ""
        log.info("%s: validating on %s.", files.location, escape_line(", ".join(val[:SHOWN_NAMES]) + more))
    parts = [CorpusPart(tuple(shards[name] for name in part)) for part in (train, val)]
    return TokenCorpus(files, "numpy", parts[0], parts[1] if val else None, eos_first=True)


def _read_shard(files: Files, name: str) -> Shard:
    """Return an array as a shard, by its header alone.

    Raises:
        UserError: If it is not a plain array of whole numbers in one dimension.
    """
    stream = io.BytesIO(files.read(name, 0, LONGEST_HEADER))
    try:
        if not stream.getvalue().startswith(MAGIC):
            raise ValueError("it does not begin with NumPy's header, which numpy.save writes and numpy.memmap does not")
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        if dtype.kind not in "ui" or dtype.byteorder == ">" or len(shape) != 1 or dtype.itemsize not in (2, 4, 8):
            raise ValueError(f"it has the shape {shape} and the type {dtype}")
    except Exception as error:  # NumPy evaluates the header as a Python literal, which may fail in any way
        reason = first_line(error, otherwise="no header")
        raise UserError(
            f"data.path={files.location}: {name} is not an array of token ids ({reason}). It needs one dimension and the type "
            "uint16, uint32, int32 or int64. Move other files out of the folder."
            f"{explain_bare_tokens(files)}"
        ) from error
    return Shard(files, name, math.prod(shape), dtype.itemsize, header=stream.tell())

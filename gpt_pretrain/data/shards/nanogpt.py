"""nanoGPT's format of token shards: train.bin and val.bin of two-byte token ids, with an optional meta.pkl."""

from __future__ import annotations

from dataclasses import replace

from gpt_pretrain.data.files import Files
from gpt_pretrain.data.shards.corpus import CorpusPart, TokenCorpus
from gpt_pretrain.data.token_stream import Shard
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.tokenizers.base import Tokenizer, fingerprint
from gpt_pretrain.tokenizers.formats.nanogpt_meta import MAX_META_BYTES, META, read_meta

TRAIN, VAL = "train.bin", "val.bin"
ITEMSIZE = 2  # bytes per token; Source: karpathy/nanoGPT, data/openwebtext/prepare.py


def is_nanogpt(files: Files) -> bool:
    """Return whether a folder holds a training set in this format."""
    return TRAIN in files.names()


def open_nanogpt(files: Files) -> TokenCorpus:
    """Describe a folder in nanoGPT's format.

    Raises:
        UserError: If train.bin is missing or meta.pkl is damaged.
    """
    names = files.names()
    if TRAIN not in names:
        raise UserError(f"data.path={files.location}: {TRAIN} is missing, which nanoGPT's format requires.")
    val = _read_part(files, VAL) if VAL in names else None
    corpus = TokenCorpus(files, "nanogpt", _read_part(files, TRAIN), val, states_itemsize=False)
    if META not in names:
        return corpus
    tokenizer = _read_tokenizer(files)
    return replace(
        corpus, tokenizer=tokenizer.name, tokenizer_sha256=fingerprint(tokenizer), tokenizer_definition=tokenizer.definition
    )


def _read_part(files: Files, name: str) -> CorpusPart:
    return CorpusPart((Shard(files, name, (files.size(name) or 0) // ITEMSIZE, ITEMSIZE),))


def _read_tokenizer(files: Files) -> Tokenizer:
    """Return the tokenizer that meta.pkl describes: characters, other tokens, or only a number of ids.

    Raises:
        UserError: If the file holds anything but plain data.
    """
    try:
        if (size := files.size(META) or 0) > MAX_META_BYTES:
            raise DamagedFileError(f"it has more than {MAX_META_BYTES:,} bytes")
        return read_meta(files.read(META, 0, size), end_of_text=True)
    except DamagedFileError as error:
        raise UserError(
            f"data.path={files.location}: {META}, which lists nanoGPT's tokens, cannot be used: {error}. Train on the text "
            "itself: data=text tokenizer=byte data.path=input.txt"
        ) from error

"""nanoGPT's format of token shards: train.bin and val.bin of two-byte token ids, with an optional meta.pkl."""

from __future__ import annotations

import io
import pickle
from dataclasses import replace
from typing import Any

from gpt_pretrain.data.corpus import CorpusPart, TokenCorpus
from gpt_pretrain.data.files import Files
from gpt_pretrain.data.token_stream import Shard
from gpt_pretrain.errors import UserError
from gpt_pretrain.tokenizers.base import fingerprint
from gpt_pretrain.tokenizers.characters import CharacterTokenizer

TRAIN, VAL, META = "train.bin", "val.bin", "meta.pkl"
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
    characters = CharacterTokenizer(_read_alphabet(files))
    return replace(corpus, tokenizer=characters.name, tokenizer_sha256=fingerprint(characters))


def _read_part(files: Files, name: str) -> CorpusPart:
    return CorpusPart((Shard(files, name, (files.size(name) or 0) // ITEMSIZE, ITEMSIZE),))


class _PlainUnpickler(pickle.Unpickler):
    """Read dicts, lists, strings and numbers only, since anything else could run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")


def _read_alphabet(files: Files) -> str:
    """Return the characters of a character-level corpus in the order of their ids.

    Raises:
        UserError: If the file holds anything but plain data.

    Source: karpathy/nanoGPT, data/shakespeare_char/prepare.py.
    """
    try:
        itos = _PlainUnpickler(io.BytesIO(files.read(META, 0, files.size(META) or 0))).load()["itos"]
        alphabet = [itos[token_id] for token_id in range(len(itos))]
        if any(not isinstance(character, str) or len(character) != 1 for character in alphabet):
            raise ValueError("its itos is not a table of characters")
    except Exception as error:  # a damaged pickle file can raise any exception
        raise UserError(
            f"data.path={files.location}: {META}, which lists nanoGPT's characters, cannot be read as plain data "
            f"({type(error).__name__}: {error}). Train on the text itself: data=text tokenizer=byte data.path=input.txt"
        ) from error
    return "".join(alphabet)
